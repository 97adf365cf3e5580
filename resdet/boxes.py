"""Box arithmetic on xyxy tensors: areas, overlaps, the R-CNN regression code, and non-maximum suppression.

All functions broadcast over leading dimensions, so a batch is one call.
"""

from __future__ import annotations

import math

import torch
import torchvision
from torch import Tensor

Weights = tuple[float, float, float, float]

UNIT: Weights = (1.0, 1.0, 1.0, 1.0)
"""Box-code weights of the RPN."""
HEAD: Weights = (10.0, 10.0, 5.0, 5.0)
"""Box-code weights of the detector: the inverse of Faster R-CNN's target deviations (0.1, 0.1, 0.2, 0.2)."""
MAX_LOG_SCALE = math.log(1000 / 16)
"""Largest dw or dh that :func:`decode` honours, so that exp() cannot overflow (R-CNN's, kept by every successor)."""


def area(boxes: Tensor) -> Tensor:
    """(..., 4) xyxy to (...) area in square pixels; zero for an empty box."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def _intersection(first: Tensor, second: Tensor) -> Tensor:
    """(..., A, 4) and (..., B, 4) to the (..., A, B) area of each pair's intersection."""
    (left, top, right, bottom), others = first[..., :, None, :].unbind(-1), second[..., None, :, :].unbind(-1)
    width = (torch.minimum(right, others[2]) - torch.maximum(left, others[0])).clamp_(min=0)
    height = (torch.minimum(bottom, others[3]) - torch.maximum(top, others[1])).clamp_(min=0)
    return width.mul_(height)


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of every pair: (..., A, 4) and (..., B, 4) to (..., A, B) in [0, 1].

    A pair whose union is empty has an IoU of 0, so that padding rows of zeros never match.
    """
    shared = _intersection(first, second)
    union = (area(first)[..., :, None] + area(second)[..., None, :]).sub_(shared)
    return shared.div_(union.clamp_(min=torch.finfo(union.dtype).tiny))


def coverage(boxes: Tensor, regions: Tensor) -> Tensor:
    """Share of each box's own area that each region covers: (..., A, 4) and (..., B, 4) to (..., A, B) in [0, 1].

    This is the overlap that counts for crowd regions, which may be far larger than the boxes within.
    """
    return _intersection(boxes, regions).div_(area(boxes)[..., :, None].clamp(min=torch.finfo(boxes.dtype).tiny))


def clip(boxes: Tensor, limits: Tensor) -> Tensor:
    """Boxes moved inside the image: ``limits`` is (W, H, W, H), broadcast against the (..., 4) boxes."""
    return torch.minimum(boxes.clamp(min=0), limits.to(boxes.dtype))


def _centre_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * size, size


def encode(proposals: Tensor, targets: Tensor, weights: Weights = UNIT) -> Tensor:
    """Deltas that carry each proposal onto its target (R-CNN, eqs. 6-9).

    Args:
        proposals: (..., 4) xyxy, every side positive where the result is used.
        targets: (..., 4) xyxy; each is the target of the proposal in its place.
        weights: multipliers of (dx, dy, dw, dh); Fast R-CNN heads use :data:`HEAD`.

    Returns:
        (..., 4) deltas, the inverse of :func:`decode` up to :data:`MAX_LOG_SCALE`; finite also for empty boxes.
    """
    centre, size = _centre_size(proposals)
    target_centre, target_size = _centre_size(targets)
    tiny = torch.finfo(size.dtype).eps
    size, target_size = size.clamp(min=tiny), target_size.clamp(min=tiny)
    deltas = torch.cat([(target_centre - centre) / size, torch.log(target_size / size)], dim=-1)
    return deltas * _constants(weights, deltas)


def decode(deltas: Tensor, proposals: Tensor, weights: Weights = UNIT) -> Tensor:
    """Boxes that the deltas make of the proposals (R-CNN, eqs. 1-4).

    Args:
        deltas: (..., 4) as :func:`encode` gives them.
        proposals: (..., 4) xyxy, broadcast against the deltas: (R, 1, 4) proposals take (R, K, 4) deltas.
        weights: the weights that encoded them.

    Returns:
        (..., 4) xyxy float32, not clipped.
    """
    centre, size = _centre_size(proposals.float())
    deltas = deltas.float()
    deltas = deltas / _constants(weights, deltas)
    new_centre = centre + deltas[..., :2] * size
    half = 0.5 * size * deltas[..., 2:].clamp(max=MAX_LOG_SCALE).exp()
    return torch.cat([new_centre - half, new_centre + half], dim=-1)


MARKED_BOXES = 80_000
"""A GPU's kernel marks every pair of boxes, of so many 0.8 GB; more go group by group."""


def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression inside each group; boxes of different groups never touch.

    Args:
        boxes: (n, 4) xyxy.
        scores: (n,).
        groups: (n,) int64, for example image * levels + level.
        iou_threshold: a box that overlaps a better one of its group by more than this is dropped.

    Returns:
        Indices of the boxes that stay, best score first.
    """
    boxes, scores = boxes.double(), scores.double()
    if not boxes.is_cuda or not 0 < len(boxes) <= MARKED_BOXES:
        return torchvision.ops.batched_nms(boxes, scores, groups, iou_threshold)
    # From 5,000 boxes on torchvision asks the GPU for one group after the other. Here each goes to a place of its own;
    # in float32 a thousand of them would cost 0.1 px of precision.
    places = groups * (boxes.max() - boxes.min() + 1)
    return torchvision.ops.nms(boxes + places[:, None], scores, iou_threshold)


def scale(boxes: Tensor, from_hw: tuple[int, int], to_hw: tuple[int, int]) -> Tensor:
    """Boxes of an image of size ``from_hw`` in the frame of the same image at size ``to_hw``, per axis exact."""
    y, x = to_hw[0] / from_hw[0], to_hw[1] / from_hw[1]
    return boxes * _constants((x, y, x, y), boxes)


def _constants(values: Weights, like: Tensor) -> Tensor:
    """(4,) of the dtype and on the device of ``like``, without waiting for a GPU as ``new_tensor`` would."""
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True)
