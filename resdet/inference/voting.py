"""Box voting (Gidaris and Komodakis 2015; appendix B): the neighbours that NMS dropped still place the box.

Differs from the paper: that one takes neighbours above the overlap, here one exactly at it votes too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from resdet import boxes as box_ops
from resdet.errors import InputError
from resdet.structures import Detections, ScoredBoxes


def vote(detections: Sequence[Detections], scored: Sequence[ScoredBoxes], *, iou: float = 0.5) -> list[Detections]:
    """Each detection's box becomes the score-weighted mean of the boxes of its class around it.

    Args:
        detections: N images, of :func:`resdet.detection.postprocess.suppress`.
        scored: what they came from, the union before NMS and before any threshold; same images, same frame. The weights
            are its probabilities; one box for all classes, (R, 1, 4), votes with each class's probability.
        iou: the least overlap of a voter with the detection, in (0, 1].

    Returns:
        Detections in the same order, with their scores and labels. A box without a voter stays as it is; one that is
        its own only voter does too, to the last bit.

    Raises:
        InputError: iou is outside (0, 1], or the numbers of images differ.
    """
    if not 0 < iou <= 1:
        raise InputError("vote: iou", found=iou, needed="a number in (0, 1]")
    if len(detections) != len(scored):
        raise InputError(
            "vote: images",
            found=f"{len(detections)} of detections, {len(scored)} of scored boxes",
            needed="the same images in both",
        )
    boxes, labels = torch.cat([d.boxes for d in detections]), torch.cat([d.labels for d in detections])
    counts = [len(d.boxes) for d in detections]
    images = torch.arange(len(counts), device=boxes.device).repeat_interleave(torch.tensor(counts, device=boxes.device))
    voters, weights = _voters(scored, images, labels)
    weights = torch.where(box_ops.iou(boxes[:, None], voters)[:, 0] >= iou, weights, 0)
    # Offsets, not places, are averaged: float32 then costs nothing beside them, and a box alone does not move. No
    # matrix product, which autocast or TF32 would round.
    offsets = (weights[..., None] * (voters - boxes[:, None])).sum(1)
    total = weights.sum(1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    moved = (boxes + offsets / total).split(counts)
    return [d._replace(boxes=b) for d, b in zip(detections, moved, strict=True)]


def _voters(scored: Sequence[ScoredBoxes], images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(T, R, 4) boxes and (T, R) probabilities of each detection's image and class, zero beyond the image's own R."""
    boxes = pad_sequence([s.boxes for s in scored], batch_first=True)  # (N, R, K or 1, 4)
    probabilities = pad_sequence([s.probabilities for s in scored], batch_first=True)
    return boxes[images, :, labels % boxes.shape[2]], probabilities[images, :, labels]
