"""Regions to fixed-size features: RoIPool (Fast R-CNN) and RoIAlign (Mask R-CNN), on one level or on a pyramid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torchvision
from torch import Tensor, nn

from resdet import boxes as box_ops
from resdet.detection.row_pooling import roi_align_rows
from resdet.errors import InputError

CANONICAL_SIDE = 224.0
"""FPN, eq. 1: a region of this side (ImageNet's crop) is pooled from level ``CANONICAL_LEVEL``."""
CANONICAL_LEVEL = 4


class RoIPooling(nn.Module):
    """(R, C, side, side) features of R regions.

    Args:
        side: bins per axis.
        strides: of the levels it pools from, finest first. With several, each region takes the level of FPN's eq. 1.
        method: ``"align"`` or ``"pool"`` (the paper's).
        samples: sampling points per bin and axis of RoIAlign; 0 takes as many as the bin is wide.
        half_pixel: shift by half a feature cell, so that centres of pixels and cells agree (detectron2's
            ``aligned=True``).
    """

    def __init__(
        self,
        side: int,
        strides: Sequence[int],
        *,
        method: Literal["align", "pool"] = "align",
        samples: int = 2,
        half_pixel: bool = False,
    ) -> None:
        super().__init__()
        if method not in ("align", "pool"):
            raise InputError("pooling method", found=repr(method), needed="'align' or 'pool'")
        self.side, self.strides = side, tuple(strides)
        self.method, self.samples, self.half_pixel = method, samples, half_pixel

    def forward(self, features: Sequence[Tensor], boxes: Tensor, images: Tensor) -> Tensor:
        """Pool.

        Args:
            features: at least as many levels (N, C, H, W) as there are strides; further ones (P6) are not used.
            boxes: (R, 4) xyxy, frame: input.
            images: (R,) the image of each region.

        Returns:
            (R, C, side, side) in the features' dtype.
        """
        rois = torch.cat([images[:, None].to(boxes.dtype), boxes], dim=1)
        if len(self.strides) == 1:
            return self._pool(features[0], rois, self.strides[0])
        levels = self.levels(boxes)
        pooled = features[0].new_empty((len(boxes), features[0].shape[1], self.side, self.side))
        for level, stride in enumerate(self.strides):
            rows = torch.where(levels == level)[0]
            pooled.index_copy_(0, rows, self._pool(features[level], rois[rows], stride))
        return pooled

    def levels(self, boxes: Tensor) -> Tensor:
        """(R,) index of the level that each of the (R, 4) boxes is pooled from (FPN, eq. 1)."""
        ideal = CANONICAL_LEVEL + torch.log2(box_ops.area(boxes).sqrt() / CANONICAL_SIDE) + 1e-6
        finest = math.log2(self.strides[0])
        return (ideal.floor() - finest).clamp(0, len(self.strides) - 1).long()

    def _pool(self, feature: Tensor, rois: Tensor, stride: int) -> Tensor:
        wide = feature.float()  # both operators want one dtype, and coordinates in bfloat16 are off by whole pixels
        if self.method == "pool":
            pooled = torchvision.ops.roi_pool(wide, rois, self.side, 1 / stride)
        elif self.samples and wide.device.type == "cpu":
            pooled = roi_align_rows(wide, rois, self.side, 1 / stride, self.samples, half_pixel=self.half_pixel)
        else:
            pooled = torchvision.ops.roi_align(wide, rois, self.side, 1 / stride, self.samples, aligned=self.half_pixel)
        return pooled.to(feature.dtype)
