"""Ensembles at the level of proposals (the paper, appendix B): each net scores and moves the regions of all nets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from resdet.structures import ScoredBoxes


def join(proposals: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The union of the (P, 4) proposals of several nets, image by image, in one frame."""
    return [torch.cat(of_image) for of_image in zip(*proposals, strict=True)]


def average(answers: Sequence[Sequence[ScoredBoxes]]) -> list[ScoredBoxes]:
    """Mean probabilities and boxes of the same regions under several nets.

    A net with one box per region is joined with nets that have one per class as if all of its classes had that box.
    """
    return [_mean(of_image) for of_image in zip(*answers, strict=True)]


def _mean(answers: Sequence[ScoredBoxes]) -> ScoredBoxes:
    boxes, probabilities = (sum(parts) / len(answers) for parts in zip(*answers, strict=True))
    return ScoredBoxes(boxes, probabilities)
