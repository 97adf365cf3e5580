"""Iterative box refinement (the paper, appendix B): a second look at each region, from the box that the first gave."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from resdet.structures import ScoredBoxes

Score = Callable[[list[Tensor]], list[ScoredBoxes]]
"""(P, 4) regions of each image to their scores and boxes."""


def refine(first: Sequence[ScoredBoxes], score: Score, *, rounds: int = 1) -> list[ScoredBoxes]:
    """All predictions of all rounds.

    Args:
        first: what the head said of the proposals of each image.
        score: the head.
        rounds: the paper's is one; each costs the head once more, and nothing else.

    Returns:
        For each image the first predictions, then those of each round; NMS runs on this union.
    """
    union = latest = list(first)
    for _ in range(rounds):
        latest = score([regressed(scored) for scored in latest])
        union = [ScoredBoxes(*map(torch.cat, zip(*pair, strict=True))) for pair in zip(union, latest, strict=True)]
    return union


def regressed(scored: ScoredBoxes) -> Tensor:
    """(R, 4) box of each region's most probable class.

    The paper turns 300 predictions into 300 new ones, so each region is moved once and not once per class.
    """
    if scored.boxes.shape[1] == 1:
        return scored.boxes[:, 0]
    best = scored.probabilities.argmax(dim=1)
    return scored.boxes[torch.arange(len(best), device=best.device), best]
