"""Multi-scale testing (the paper, appendix B): each region on the two scales at which it looks as in training.

Regions are pooled from an image pyramid, at the two adjacent scales that bring them nearest to 224 x 224, the size of
ImageNet's crops (SPP-net's rule), and the two vectors are merged by maxout.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from resdet import boxes as box_ops
from resdet.inference.view import View, side
from resdet.structures import ImageBatch


def adjacent_scales(sides: Tensor, region_side: float) -> Tensor:
    """The first of the two scales for each region.

    Args:
        sides: (R, S) side of each region at each scale, scales rising.
        region_side: of training.

    Returns:
        (R,) i in [0, S - 2]: scales i and i + 1 lie nearest, by the sum of their distances; the smaller in a tie. With
        one scale all are 0.
    """
    distance = (sides - region_side).abs()
    return (distance[:, :-1] + distance[:, 1:]).argmin(1) if sides.shape[1] > 1 else sides.new_zeros(len(sides)).long()


def embed_maxout(
    pyramid: Sequence[View], boxes: Tensor, images: Tensor, context: Tensor, common: ImageBatch, *, region_side: float
) -> Tensor:
    """(R, D + E) vectors of regions, each the element-wise maximum over its two scales.

    Args:
        pyramid: one net's views, sizes rising.
        boxes: (R, 4) regions, common frame.
        images: (R,) image of each.
        context: (N, E) of the images. It is a net's view of the whole image at its own size, as in training.
        common: the common frame.
        region_side: pixels.
    """
    sides = torch.stack([side(boxes * view.scale_from(common)[images]) for view in pyramid], dim=1)
    first = adjacent_scales(sides, region_side)
    vectors = boxes.new_empty(0)
    for level, view in enumerate(pyramid):
        rows = torch.where((first == level) | (first == level - 1))[0]
        seen = view.embed(boxes[rows], images[rows], context, common)
        if not level:
            vectors = seen.new_full((len(boxes), seen.shape[1]), float("-inf"))
        vectors[rows] = torch.maximum(vectors[rows], seen)
    return vectors


def merge_proposals(found: Sequence[tuple[Tensor, Tensor]], *, nms_iou: float, count: int) -> Tensor:
    """Proposals of one image from several scales: the best that survive their NMS, as many as of one scale.

    Args:
        found: (P, 4) boxes and (P,) scores of each scale.
        nms_iou: of the RPN.
        count: of the RPN.
    """
    boxes, scores = (torch.cat(parts) for parts in zip(*found, strict=True))
    groups = torch.zeros(len(boxes), dtype=torch.long, device=boxes.device)
    return boxes[box_ops.batched_nms(boxes, scores, groups, nms_iou)[:count]]
