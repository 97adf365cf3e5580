"""Greedy non-maximum suppression among the anchors of each level, for a whole batch.

On a CPU each level of each image is one call of torchvision's. Its GPU kernel goes through the boxes of a call one
after the other, which for a batch takes longer than the net itself. There all groups are settled at once instead, by
the rounds of Cluster-NMS (Zheng et al. 2020, section 3.3): a box stays if no better one that stays overlaps it, asked
of all boxes until no answer changes. That is what the greedy order gives, after as many rounds as the longest chain of
boxes that decide upon each other is long.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torchvision
from torch import Tensor

MOST = 4096
"""Boxes of a group that are settled at once; more, whose pairs are too many, go to torchvision's kernel."""
PAIRS = 1 << 25
"""Pairs at a time, some 0.5 GB."""
ROUNDS = 8
"""Between two looks at whether all is settled: the host waits for each look, and a round costs little."""


def survivors(boxes: Sequence[Tensor], scores: Sequence[Tensor], iou_threshold: float) -> Tensor:
    """Which boxes stay; those of different levels and images never touch.

    Args:
        boxes: of each level (N, k, 4) xyxy, k as it comes.
        scores: of each level (N, k).
        iou_threshold: a box that overlaps a better one of its group by more than this is dropped.

    Returns:
        (N, sum of k) bool, level by level.
    """
    if not _together(scores):
        return torch.cat([one_by_one(*level, iou_threshold) for level in zip(boxes, scores, strict=True)], 1)
    counts = [score.shape[1] for score in scores]
    longest = max(counts)
    # An empty box overlaps nothing, so that it can fill up the shorter levels.
    table = torch.stack([torch.nn.functional.pad(b, (0, 0, 0, longest - b.shape[1])) for b in boxes], 1)
    ranks = torch.stack([torch.nn.functional.pad(s, (0, longest - s.shape[1])) for s in scores], 1)
    stays = all_at_once(table.flatten(0, 1), ranks.flatten(0, 1), iou_threshold).view(ranks.shape)
    return torch.cat([stays[:, level, :count] for level, count in enumerate(counts)], 1)


def _together(scores: Sequence[Tensor]) -> bool:
    return scores[0].is_cuda and max(score.shape[1] for score in scores) <= MOST


def one_by_one(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """(G, k) bool of (G, k, 4) boxes with (G, k) scores, group by group."""
    stays = torch.zeros_like(scores, dtype=torch.bool)
    for mine, of_group, ranks in zip(stays, boxes, scores, strict=True):
        mine.index_fill_(0, torchvision.ops.nms(of_group, ranks, iou_threshold), True)
    return stays


def all_at_once(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """(G, k) bool of (G, k, 4) boxes with (G, k) scores, all groups together; k is not 0."""
    order = scores.sort(dim=1, descending=True, stable=True)[1]
    ranked = boxes.gather(1, order[..., None].expand(-1, -1, 4))
    at_once = max(1, PAIRS // scores.shape[1] ** 2)
    with torch.autocast(boxes.device.type, enabled=False):  # it would copy the table at each round
        settled = torch.cat([_settle(_hidden_by(some, iou_threshold)) for some in ranked.split(at_once)])
    return torch.zeros_like(settled).scatter_(1, order, settled)


def _hidden_by(boxes: Tensor, iou_threshold: float) -> Tensor:
    """(G, k, k) of the numbers 0 and 1: whether the first of two boxes, the better one, hides the second."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    shared = torch.minimum(x2[:, :, None], x2[:, None]).sub_(torch.maximum(x1[:, :, None], x1[:, None])).clamp_(min=0)
    shared *= torch.minimum(y2[:, :, None], y2[:, None]).sub_(torch.maximum(y1[:, :, None], y1[:, None])).clamp_(min=0)
    area = (x2 - x1) * (y2 - y1)
    union = (area[:, :, None] + area[:, None]).sub_(shared)
    overlaps = shared.div_(union) > iou_threshold  # no number, of two empty boxes, is not above
    return overlaps.triu_(1).to(torch.float16 if boxes.is_cuda else boxes.dtype)


def _settle(hidden_by: Tensor) -> Tensor:
    stays = torch.ones_like(hidden_by[:, :1])  # (G, 1, k)
    while True:
        before = stays
        for _ in range(ROUNDS):
            before, stays = stays, (stays @ hidden_by == 0).to(hidden_by.dtype)
        if is_settled(before, stays):
            return stays[:, 0] > 0


def is_settled(before: Tensor, after: Tensor) -> bool:
    """Whether a round changed nothing, for which the host waits."""
    return torch.equal(before, after)
