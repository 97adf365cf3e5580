"""Soft-NMS (Bodla et al. 2017): what overlaps a better box is not dropped, its score decays.

All groups (an image's class each, or a whole image) run side by side: in each round every group picks its best box and
decays the others. The picked scores can only fall from round to round, so a group stops at the wanted count.

Differs from the paper: the linear kind spares a box whose IoU is exactly the limit, as hard NMS here does and as the
authors' own code does; the paper's equation decays it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from resdet import boxes as box_ops


def linear(overlaps: Tensor, nms_iou: float) -> Tensor:
    """Factors 1 - IoU beyond ``nms_iou``, 1 up to it."""
    return torch.where(overlaps > nms_iou, 1 - overlaps, 1)


def gaussian(overlaps: Tensor, sigma: float) -> Tensor:
    """Factors exp(-IoU^2 / sigma), without a limit."""
    return overlaps.square().div_(-sigma).exp_()


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    *,
    decay: Callable[[Tensor], Tensor],
    score_threshold: float,
    max_per_group: int,
) -> tuple[Tensor, Tensor]:
    """Soft non-maximum suppression inside each group; boxes of different groups never touch.

    Args:
        boxes: (n, 4) xyxy.
        scores: (n,); of equal ones the lower index is picked first.
        groups: (n,) int64.
        decay: (...) IoU with a picked box to the (...) factors in [0, 1] of the scores.
        score_threshold: a box whose decayed score is not above it is dropped.
        max_per_group: at most so many boxes of a group, the best ones.

    Returns:
        Indices of the boxes that stay, best decayed score first, and the (n,) decayed scores of all (-inf where a box
        was never picked).
    """
    table = group_table(scores, groups)
    candidates, left, gone = boxes[table], scores[table], table < 0
    left.masked_fill_(gone, -math.inf)
    decayed = torch.full_like(scores, -math.inf)
    for rows in (~gone).sum(0).tolist()[:max_per_group]:  # so many groups have yet another box, the longest on top
        table, candidates, left, gone = table[:rows], candidates[:rows], left[:rows], gone[:rows]
        best, place = left.max(1, keepdim=True)  # the first of equals
        if not (best > score_threshold).any():
            break
        decayed[table.gather(1, place)] = best
        gone.scatter_(1, place, True)
        picked = candidates.take_along_dim(place[..., None], 1)
        left = (left * decay(box_ops.iou(picked, candidates)[:, 0])).masked_fill_(gone, -math.inf)
    kept = torch.where(decayed > score_threshold)[0]
    return kept[decayed[kept].argsort(descending=True, stable=True)], decayed


def group_table(scores: Tensor, groups: Tensor) -> Tensor:
    """Rows of each group, best score first, so that a loop over ranks serves all groups at once.

    Args:
        scores: (n,); equal ones keep their order.
        groups: (n,) int64.

    Returns:
        (groups, longest) int64 indices into n, -1 where a group has no more; the longest group is the first row.
    """
    order = scores.argsort(descending=True, stable=True)
    order = order[groups[order].argsort(stable=True)]
    _, group, counts = torch.unique_consecutive(groups[order], return_inverse=True, return_counts=True)
    row = counts.argsort(descending=True, stable=True).argsort()[group]
    rank = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[group]
    table = order.new_full((len(counts), int(counts.max()) if len(counts) else 0), -1)
    table[row, rank] = order
    return table
