"""A few images of a classification set."""

from __future__ import annotations

import pytest
import torch

from resdet.datasets.few import FewImages, draw_rows
from resdet.errors import InputError


class Labelled:
    """Views and labels whose view is their row."""

    classes = ("a", "b", "c")

    def __init__(self, labels):
        self.labels, self.asked = labels, []

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, row):
        self.asked.append(row)
        return torch.tensor(row), self.labels[row]


def test_some_rows_seen_without_chance():
    few = FewImages(Labelled([0, 1, 2, 0]), [3, 1])
    assert (len(few), few.classes) == (2, ("a", "b", "c"))
    assert [(int(view), label) for view, label in (few[0], few[1])] == [(3, 0), (1, 1)]
    assert few[1, 12345] == few[1]  # a seed counts for nothing


def test_rows_of_all_classes():
    data = Labelled([0] * 20 + [1, 2])
    rows = draw_rows(data, 6, 0)
    assert sorted({data.labels[row] for row in rows}) == [0, 1, 2]
    assert len(rows) == len(set(rows)) == 6 and rows == sorted(rows)
    assert draw_rows(data, 6, 0) == rows
    assert draw_rows(data, 6, 1) != rows
    assert draw_rows(data, 22, 0) == list(range(22))


def test_not_all_of_a_large_set_is_looked_at():
    data = Labelled([0] * 1000)
    draw_rows(data, 3, 0)
    assert len(data.asked) == 60


def test_more_than_there_are():
    with pytest.raises(InputError, match=r"5 images\n.*at most 4"):
        draw_rows(Labelled([0, 1, 2, 0]), 5, 0)
