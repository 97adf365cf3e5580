"""A few images of a classification set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from resdet.errors import InputError

LOOKED_AT = 20
"""Times as many images as are wanted are looked at for images of all classes."""


class FewImages(Dataset):
    """Some images of a set of views and labels, seen without chance.

    Args:
        data: gives (view, label) of an index.
        rows: of it, in order.
    """

    def __init__(self, data: Any, rows: Sequence[int]) -> None:
        self.data, self.rows = data, tuple(rows)

    @property
    def classes(self) -> tuple[str, ...]:
        """K class names, index = label."""
        return self.data.classes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, int]:
        """The view and the label of an index, or of (index, seed), whose seed counts for nothing."""
        place = key[0] if isinstance(key, tuple) else key
        return self.data[self.rows[place]]


def draw_rows(data: Any, count: int, seed: int) -> list[int]:
    """Rows of a set of views and labels, drawn at random; of as many classes as there are among those looked at.

    Args:
        data: gives (view, label) of an index.
        count: how many.
        seed: of the draw.

    Raises:
        InputError: there are not so many images.
    """
    if count > len(data):
        raise InputError("--overfit", found=f"{count} images", needed=f"at most {len(data)}, as there are in training")
    order = np.random.default_rng(seed).permutation(len(data))[: LOOKED_AT * count].tolist()
    seen: dict[int, int] = {}
    turns = []
    for row in order:
        label = data[row][1]
        turns.append(seen.get(label, 0))  # the first of every class come before the second
        seen[label] = turns[-1] + 1
    best = np.argsort(turns, kind="stable")[:count]
    return sorted(order[place] for place in best)
