"""Weighted box fusion (WBF, Solovyev et al. 2021): several views' detections of an object become one.

Unlike NMS it drops nothing: each box pulls on the place and on the score of the one it ends in.

Where several fused boxes overlap a box enough, the paper does not say which it joins; here the one of greatest IoU, the
oldest of equals.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from resdet import boxes as box_ops
from resdet.detection.soft_nms import group_table
from resdet.errors import InputError
from resdet.structures import Detections


def fuse(
    views: Sequence[Sequence[Detections]],
    *,
    iou: float = 0.55,
    score_threshold: float | None = None,
    max_per_image: int = 100,
    class_agnostic: bool = False,
) -> list[Detections]:
    """The detections of V views of the same images (scales, flips, nets) as one list.

    In each image and class the boxes of all views come in the order of falling scores. Each joins the fused box that it
    overlaps most, if by more than ``iou``, or founds one. A fused box is the score-weighted mean of its members. Its
    score is their mean times min(T, V) / V, T the number of members, so that what few views see counts less.

    Args:
        views: V views of N images each, all in one frame.
        iou: overlap beyond which a box joins, in (0, 1]; 0.55 is the paper's.
        score_threshold: only fused scores above it are kept; None keeps all.
        max_per_image: at most so many detections of an image, the best ones.
        class_agnostic: boxes of all classes join each other; the best one's class is that of all.

    Returns:
        Detections of each image, best first.

    Raises:
        InputError: there is no view, the views differ in their number of images, or iou is outside (0, 1].
    """
    if len({len(view) for view in views}) != 1:
        found = f"{len(views)} views with {', '.join(str(len(view)) for view in views) or 'no'} images"
        raise InputError("fuse: views", found=found, needed="one view or more, each of the same images")
    if not 0 < iou <= 1:
        raise InputError("fuse: iou", found=iou, needed="a number in (0, 1]")
    every = [detections for view in views for detections in view]
    boxes, scores, labels = (torch.cat(parts) for parts in zip(*every, strict=True))
    count, device = len(views[0]), boxes.device
    lengths = torch.tensor([len(d.boxes) for d in every], device=device)
    images = torch.arange(count, device=device).repeat(len(views)).repeat_interleave(lengths)

    table = group_table(scores, images if class_agnostic else labels * count + images)
    fused, weight, members = _joined(table, boxes, scores, iou)
    founded = members > 0
    founders, total = table[founded], members[founded]
    merged = (weight[founded] / total * total.clamp(max=len(views)) / len(views)).to(scores.dtype)
    order = founders.argsort()  # equal scores: in the order of the views and of their detections
    order = order[merged[order].argsort(descending=True, stable=True)]
    if score_threshold is not None:
        order = order[merged[order] > score_threshold]
    founders, merged, places = founders[order], merged[order], fused[founded].to(boxes.dtype)[order]
    answers = []
    for n in range(count):
        mine = torch.where(images[founders] == n)[0][:max_per_image]
        answers.append(Detections(places[mine], merged[mine], labels[founders[mine]]))
    return answers


def _joined(table: Tensor, boxes: Tensor, scores: Tensor, iou: float) -> tuple[Tensor, Tensor, Tensor]:
    """The fused boxes of each group, the sums of their members' scores and the members' numbers, by founder's rank."""
    # What the r-th box of a group founds has column r; elsewhere stand zero boxes, which overlap nothing.
    fused = boxes.new_zeros((*table.shape, 4), dtype=torch.float64)
    weight = fused.new_zeros(table.shape)
    members = torch.zeros_like(table)
    for rank, rows in enumerate((table >= 0).sum(0).tolist()):  # so many groups have a box of this rank, on top
        mine = table[:rows, rank]
        box, score = boxes[mine].double(), scores[mine].double()
        score = score.clamp(min=torch.finfo(score.dtype).tiny)  # a founder of score 0 must not divide by 0
        overlap, place = box_ops.iou(box[:, None], fused[:rows, : rank + 1])[:, 0].max(1)
        at = torch.arange(rows, device=boxes.device), torch.where(overlap > iou, place, rank)
        members[at] += 1
        weight[at] += score
        fused[at] += (score / weight[at])[:, None] * (box - fused[at])
    return fused, weight, members
