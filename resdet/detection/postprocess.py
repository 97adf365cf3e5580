"""From scores of all regions to the answer: threshold, non-maximum suppression, the best of each image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from resdet import boxes as box_ops
from resdet.structures import Detections, Proposals, ScoredBoxes

MIN_SIDE = 1e-2
"""Boxes with a side below this many input pixels are dropped, as clipping has left nothing of them."""


def score_regions(logits: Tensor, deltas: Tensor, proposals: Proposals, limits: Tensor) -> list[ScoredBoxes]:
    """What the head says of each proposal, image by image, before any threshold.

    Args:
        logits: (N * P, K + 1), background last.
        deltas: (N * P, K or 1, 4).
        proposals: the (N, P) regions they belong to.
        limits: (N, 4) clip limits.
    """
    count = proposals.boxes.shape[1]
    regions = proposals.boxes.reshape(-1, 1, 4)
    boxes = box_ops.clip(box_ops.decode(deltas, regions, box_ops.HEAD), limits.repeat_interleave(count, 0)[:, None])
    probabilities = logits.float().softmax(-1)[:, :-1]
    return [
        ScoredBoxes(b[v], p[v])
        for b, p, v in zip(boxes.split(count), probabilities.split(count), proposals.valid, strict=True)
    ]


def suppress(
    scored: Sequence[ScoredBoxes],
    *,
    score_threshold: float = 0.05,
    nms_iou: float = 0.5,
    max_per_image: int = 100,
) -> list[Detections]:
    """Per-class NMS over a batch in one call.

    Args:
        scored: every region of each image.
        score_threshold: only probabilities above it compete. 0.05 is for evaluation; pictures want 0.5 or so.
        nms_iou: overlap beyond which the lesser of two boxes of a class goes.
        max_per_image: at most so many detections of an image, the best ones.

    Returns:
        Detections of each image, best first, in the frame of ``scored``.
    """
    probabilities = torch.cat([s.probabilities for s in scored])
    boxes = torch.cat([s.boxes for s in scored])
    device = boxes.device
    counts = torch.tensor([len(s.probabilities) for s in scored], device=device)
    images = torch.arange(len(scored), device=device).repeat_interleave(counts)
    rows, labels = torch.where(probabilities > score_threshold)
    scores = probabilities[rows, labels]
    boxes = boxes[rows, labels % boxes.shape[1]]
    whole = ((boxes[:, 2:] - boxes[:, :2]) >= MIN_SIDE).all(1)
    images, labels, scores, boxes = images[rows][whole], labels[whole], scores[whole], boxes[whole]
    kept = box_ops.batched_nms(boxes, scores, images * probabilities.shape[1] + labels, nms_iou)
    answers = []
    for n in range(len(scored)):
        mine = kept[images[kept] == n][:max_per_image]
        answers.append(Detections(boxes[mine], scores[mine], labels[mine]))
    return answers


def to_original(detections: Detections, from_hw: tuple[int, int], original_hw: tuple[int, int]) -> Detections:
    """Detections of an image of size ``from_hw`` in the frame of its file."""
    boxes = box_ops.scale(detections.boxes, from_hw, original_hw)
    limits = boxes.new_tensor((original_hw[1], original_hw[0]) * 2)
    return detections._replace(boxes=box_ops.clip(boxes, limits))  # rounding may leave the image by a hair
