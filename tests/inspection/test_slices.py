from __future__ import annotations

import numpy as np
import pytest

from resdet.benchmarks.evaluation import evaluation_case
from resdet.evaluation.coco import evaluate_coco
from resdet.evaluation.coco_curves import CocoFound, CocoObjects
from resdet.evaluation.coco_rows import read_found, read_truth
from resdet.inspection.slices import PARTS, sliced


def parts(boxes, found, by):
    """Number, AP50 and recall of each part, of one class in one image; detections by falling score."""
    boxes, found = (np.array(rows, dtype=float).reshape(-1, 4) for rows in (boxes, found))
    nothing, rows = np.zeros(len(boxes), dtype=int), np.zeros(len(found), dtype=int)
    truth = CocoObjects(boxes, boxes[:, 2:].prod(1), nothing > 0, nothing, nothing)
    detected = CocoFound(found, 1 / np.arange(1, len(found) + 1), rows, rows)
    return [row[2:3] + row[4:] for row in sliced(truth, detected, num_classes=1) if row.by == by]


def assert_rows(rows, expected):
    for row, wanted in zip(rows, expected, strict=True):
        assert row == pytest.approx(wanted)


def test_size_is_COCOs():
    content, table = evaluation_case(40, 30, 4)
    truth = read_truth(content)
    found = read_found(table, truth)
    figures, rows = evaluate_coco(truth, found), sliced(truth.objects, found, num_classes=4)
    assert [row.part for row in rows] == [part for names in PARTS.values() for part in names]
    assert sum(row.objects for row in rows[:3]) == (~truth.objects.crowd).sum() < len(truth.objects.crowd)
    assert [row.AP for row in rows[:3]] == [figures.APs, figures.APm, figures.APl]
    assert [row.recall for row in rows[:3]] == [figures.ARs, figures.ARm, figures.ARl]


def test_shape():
    # Tall and wide objects, and a wide detection of nothing above that of the wide object: precision 1/2 there. The
    # tall one is found; among the tall that detection does not count.
    tall, wide, nothing = (0, 0, 10, 30), (100, 0, 30, 10), (300, 0, 30, 10)
    assert_rows(parts([tall, wide], [nothing, tall, wide], "shape"), [(1, 1, 1), (0, None, None), (1, 0.5, 1)])


def test_crowding():
    # Two objects overlap by half, IoU 1/3, one stands alone, which is not found.
    pair, single = [(0, 0, 10, 10), (5, 0, 10, 10)], (100, 0, 10, 10)
    assert_rows(parts([*pair, single], pair, "crowding"), [(1, 0, 0), (2, 1, 1), (0, None, None)])
