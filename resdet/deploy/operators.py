"""Operations that ONNX knows and torch's exporter does not translate as runtimes want them.

torch's own translation of NMS lists one group; ONNX's ``NonMaxSuppression`` takes many at once and thresholds too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset18 as op
from torch import Tensor

from resdet.deploy import graph

INT64 = 7
"""Of ``onnx.TensorProto``."""


@torch.library.custom_op("resdet::survivors", mutates_args=())
def survivors(boxes: Tensor, scores: Tensor, iou_threshold: float, above: float) -> Tensor:
    """:func:`resdet.deploy.graph.survivors` as one operator, so that it is seen whole."""
    return graph.survivors(boxes, scores, iou_threshold, above)


@survivors.register_fake
def _(boxes: Tensor, scores: Tensor, iou_threshold: float, above: float) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


def _survivors(boxes: Any, scores: Any, iou_threshold: float, above: float) -> Any:
    every = op.Constant(value_int=2**31 - 1)
    chosen = op.NonMaxSuppression(boxes, op.Unsqueeze(scores, [1]), every, iou_threshold, above)  # (n, 3)
    places = op.Gather(chosen, op.Constant(value_ints=[0, 2]), axis=1)
    count = op.Shape(places, start=0, end=1)
    nobody = op.Expand(op.Constant(value_float=0.0), op.Shape(scores))
    return op.Greater(op.ScatterND(nobody, places, op.Expand(op.Constant(value_float=1.0), count)), 0.0)


def _roi_align(
    input: Any,
    rois: Any,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Any:
    return op.RoiAlign(
        input,
        op.Slice(rois, [1], [5], [1]),
        op.Cast(op.Squeeze(op.Slice(rois, [0], [1], [1]), [1]), to=INT64),
        coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
        output_height=pooled_height,
        output_width=pooled_width,
        sampling_ratio=max(sampling_ratio, 0),
        spatial_scale=spatial_scale,
    )


def _roi_pool(input: Any, rois: Any, spatial_scale: float, pooled_height: int, pooled_width: int) -> Any:
    pooled = op.MaxRoiPool(input, rois, pooled_shape=[pooled_height, pooled_width], spatial_scale=spatial_scale)
    return pooled, op.Identity(pooled)  # torchvision's second output, the places of the maxima, is of use in training


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.resdet.survivors.default: _survivors,
    torch.ops.torchvision.roi_align.default: _roi_align,
    torch.ops.torchvision.roi_pool.default: _roi_pool,
}
"""For ``torch.onnx.export``."""
