"""From scores of all regions to the answer: threshold, non-maximum suppression, the best of each image."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from resdet import boxes as box_ops
from resdet.detection.roi_head import Predictions, read_predictions
from resdet.detection.soft_nms import gaussian, linear, soft_nms
from resdet.errors import InputError, nearest
from resdet.structures import Detections, Proposals, ScoredBoxes

METHODS = ("hard", "linear", "gaussian")
"""Kinds of :func:`suppress`."""
MIN_SIDE = 1e-2
"""Boxes with a side below this many input pixels are dropped, as clipping has left nothing of them."""


def score_regions(predictions: Predictions, proposals: Proposals, limits: Tensor) -> list[ScoredBoxes]:
    """What the head says of each proposal, image by image, before any threshold.

    Args:
        predictions: of the N * P proposals.
        proposals: the (N, P) regions they belong to.
        limits: (N, 4) clip limits.
    """
    count = proposals.boxes.shape[1]
    read = read_predictions(predictions, proposals.boxes.flatten(0, 1), limits.repeat_interleave(count, 0))
    real = proposals.valid.sum(1).tolist()  # they come first
    parts = zip(read.boxes.split(count), read.probabilities.split(count), real, strict=True)
    return [ScoredBoxes(boxes[:n], probabilities[:n]) for boxes, probabilities, n in parts]


def suppress(
    scored: Sequence[ScoredBoxes],
    *,
    score_threshold: float = 0.05,
    nms_iou: float = 0.5,
    max_per_image: int = 100,
    method: Literal["hard", "linear", "gaussian"] = "hard",
    class_agnostic: bool = False,
    sigma: float = 0.5,
) -> list[Detections]:
    """NMS over a batch in one call, greedy or soft.

    Args:
        scored: every region of each image.
        score_threshold: the least score of a detection: only probabilities above it compete, and only decayed scores
            above it are kept. 0.05 is for evaluation; pictures want 0.5 or so, and Soft-NMS gains most from less.
        nms_iou: overlap beyond which the lesser of two boxes of a class goes (hard) or loses score (linear).
        max_per_image: at most so many detections of an image, the best ones.
        method: ``hard`` drops the lesser box; ``linear`` and ``gaussian`` decay its score
            (:mod:`resdet.detection.soft_nms`).
        class_agnostic: boxes of all classes of an image compete with each other, not only those of one class.
        sigma: width of the Gaussian, in use with that method only; 0.5 is the Soft-NMS paper's.

    Returns:
        Detections of each image, best first, in the frame of ``scored``. Their scores are the decayed ones.

    Raises:
        InputError: the method is unknown, or sigma is not positive.
    """
    if method not in METHODS:
        raise InputError("suppress: method", found=repr(method), needed=nearest(method, METHODS))
    if not sigma > 0:
        raise InputError("suppress: sigma", found=sigma, needed="a number above 0")
    probabilities = torch.cat([s.probabilities for s in scored])
    boxes = torch.cat([s.boxes for s in scored])
    counts = [len(s.probabilities) for s in scored]
    images = torch.arange(len(scored), device=boxes.device)
    images = images.repeat_interleave(
        torch.tensor(counts).to(images.device, non_blocking=True), output_size=sum(counts)
    )
    whole = ((boxes[..., 2:] - boxes[..., :2]) >= MIN_SIDE).all(-1)  # (R, K or 1)
    rows, labels = torch.where((probabilities > score_threshold) & whole)
    images, scores, boxes = images[rows], probabilities[rows, labels], boxes[rows, labels % boxes.shape[1]]
    groups = images if class_agnostic else images * probabilities.shape[1] + labels
    if method == "hard":
        kept = box_ops.batched_nms(boxes, scores, groups, nms_iou)
    else:
        decay = partial(linear, nms_iou=nms_iou) if method == "linear" else partial(gaussian, sigma=sigma)
        kept, scores = soft_nms(
            boxes, scores, groups, decay=decay, score_threshold=score_threshold, max_per_group=max_per_image
        )
    images, order = images[kept].sort(stable=True)
    bounds = torch.searchsorted(images, torch.arange(len(scored) + 1, device=images.device)).tolist()
    kept = kept[order]
    parts = [kept[first:last][:max_per_image] for first, last in pairwise(bounds)]
    return [Detections(boxes[mine], scores[mine], labels[mine]) for mine in parts]


def to_original(detections: Detections, from_hw: tuple[int, int], original_hw: tuple[int, int]) -> Detections:
    """Detections of an image of size ``from_hw`` in the frame of its file."""
    boxes = box_ops.scale(detections.boxes, from_hw, original_hw)
    limits = torch.tensor((original_hw[1], original_hw[0]) * 2).to(boxes.device, non_blocking=True)
    return detections._replace(boxes=box_ops.clip(boxes, limits))  # rounding may leave the image by a hair
