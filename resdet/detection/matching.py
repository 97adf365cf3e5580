"""Who answers for which object: anchors and proposals against ground truth, and the sample that enters the loss.

Both stages use the same two steps, for a whole batch at once and with shapes that do not depend on the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from resdet import boxes as box_ops
from resdet.structures import Target

POSITIVE, NEGATIVE, NEITHER = 1, 0, -1
IGNORED_COVERAGE = 0.5
"""A candidate with at least this share of itself inside an ignored region is never called background."""
PAIRS = 1 << 26
"""Candidates times objects of one go, 256 MB for each table of them: further images come after."""


class PaddedTargets(NamedTuple):
    """Targets of a batch side by side; rows beyond an image's own are zero boxes that match nothing. Frame: input."""

    boxes: Tensor
    """(N, G, 4), G the largest count of the batch and at least 1."""
    labels: Tensor
    """(N, G)."""
    real: Tensor
    """(N, G) bool: an object that may be matched."""
    ignore: Tensor
    """(N, G) bool: an object whose surroundings are no background."""


def pad_targets(targets: Sequence[Target]) -> PaddedTargets:
    """Targets of N images as one set of tensors."""

    def stack(rows: list[Tensor]) -> Tensor:
        count = max(1, *(len(r) for r in rows))
        padded = rows[0].new_zeros((len(rows), count, *rows[0].shape[1:]))
        for n, row in enumerate(rows):
            padded[n, : len(row)] = row
        return padded

    return PaddedTargets(
        boxes=stack([t.boxes for t in targets]),
        labels=stack([t.labels for t in targets]),
        real=stack([~t.ignore for t in targets]),
        ignore=stack([t.ignore for t in targets]),
    )


class Matches(NamedTuple):
    """What each candidate stands for."""

    kind: Tensor
    """(N, M) int8: POSITIVE, NEGATIVE or NEITHER."""
    target: Tensor
    """(N, M) index into G of the object of greatest IoU."""


def match(
    candidates: Tensor,
    targets: PaddedTargets,
    *,
    positive_iou: float,
    background_iou: tuple[float, float],
    best_for_each: bool = False,
) -> Matches:
    """Candidates against ground truth by IoU.

    Args:
        candidates: (M, 4) shared by all images, or (N, M, 4).
        targets: the ground truth of N images.
        positive_iou: an IoU of at least this is positive.
        background_iou: an IoU in [low, high) is background; between ``high`` and ``positive_iou`` is neither.
        best_for_each: an object's best candidates are positive whatever their IoU (Ren 2015, rule i), each for the
            object it itself overlaps most.
    """
    at_once = max(1, PAIRS // (targets.boxes.shape[1] * candidates.shape[-2]))
    if at_once < len(targets.boxes):
        some = [slice(first, first + at_once) for first in range(0, len(targets.boxes), at_once)]
        own = [candidates if candidates.dim() == 2 else candidates[rows] for rows in some]
        truth = [PaddedTargets(*(part[rows] for part in targets)) for rows in some]
        each = partial(match, positive_iou=positive_iou, background_iou=background_iou, best_for_each=best_for_each)
        parts = [each(c, t) for c, t in zip(own, truth, strict=True)]
        return Matches(*map(torch.cat, zip(*parts, strict=True)))
    overlap = box_ops.iou(targets.boxes, candidates).mul_(targets.real[..., None])  # (N, G, M)
    best, index = overlap.max(dim=1)
    low, high = background_iou
    positive = best >= positive_iou
    if best_for_each:
        top = overlap.amax(dim=2, keepdim=True)
        positive |= ((overlap == top) & (top > 0)).any(dim=1)
    kind = torch.full_like(index, NEITHER, dtype=torch.int8).masked_fill_((best >= low) & (best < high), NEGATIVE)
    if targets.ignore.is_cuda or targets.ignore.any():  # asking a GPU would wait for it
        regions = torch.where(targets.ignore[..., None], targets.boxes, 0)
        kind.masked_fill_(box_ops.coverage(candidates, regions).amax(-1) >= IGNORED_COVERAGE, NEITHER)
    return Matches(kind.masked_fill_(positive, POSITIVE), index)


class Sample(NamedTuple):
    """Rows drawn from each image's candidates, positives first. Unused places are marked, not left out."""

    rows: Tensor
    """(N, S) into M."""
    positive: Tensor
    """(N, S) bool."""
    used: Tensor
    """(N, S) bool: positive or negative; the rest only fill the shape."""


def sample(kind: Tensor, *, count: int, positive_fraction: float) -> Sample:
    """At most ``count`` candidates of each image: positives up to their share, the rest background, at random.

    Args:
        kind: (N, M) of :func:`match`.
        count: S, the mini-batch per image.
        positive_fraction: largest share of positives.
    """
    most = min(int(count * positive_fraction), kind.shape[1])  # a share of the wish, also where candidates are few
    count = min(count, kind.shape[1])
    noise = torch.rand(kind.shape, device=kind.device)
    # Keys order each image's candidates: chosen positives (3 + noise), negatives (1 + noise), everything else (-1).
    # Positives beyond their share drop out, so that background takes their places.
    key = torch.where(kind == NEGATIVE, 1 + noise, -1.0)
    if most:
        score, index = torch.where(kind == POSITIVE, noise, -1.0).topk(most, dim=1)
        key.scatter_(1, index, torch.where(score >= 0, 3 + score, key.gather(1, index)))
    score, index = key.topk(count, dim=1)
    return Sample(index, positive=score >= 3, used=score >= 0)
