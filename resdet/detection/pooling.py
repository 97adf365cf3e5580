"""Regions to fixed-size features: RoIPool (Fast R-CNN) and RoIAlign (Mask R-CNN), on one level or on a pyramid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torchvision
from torch import Tensor, nn

from resdet import boxes as box_ops
from resdet.cpu.row_pooling import roi_align_rows
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
        every: keep every so many-th bin of each axis (:func:`resdet.backbones.trunk.take_stride`).
    """

    def __init__(
        self,
        side: int,
        strides: Sequence[int],
        *,
        method: Literal["align", "pool"] = "align",
        samples: int = 2,
        half_pixel: bool = False,
        every: int = 1,
    ) -> None:
        super().__init__()
        if method not in ("align", "pool"):
            raise InputError("pooling method", found=repr(method), needed="'align' or 'pool'")
        self.side, self.strides = side, tuple(strides)
        self.method, self.samples, self.half_pixel, self.every = method, samples, half_pixel, every

    def forward(self, features: Sequence[Tensor], boxes: Tensor, images: Tensor) -> Tensor:
        """Pool.

        Args:
            features: at least as many levels (N, C, H, W) as there are strides; further ones (P6) are not used.
            boxes: (R, 4) xyxy, frame: input.
            images: (R,) the image of each region.

        Returns:
            (R, C, side, side) in the features' dtype; with ``every``, (R, C, ceil(side / every), ceil(side / every)).
        """
        levels = self.levels(boxes) if len(self.strides) > 1 else torch.zeros_like(images)
        used = features[: len(self.strides)]
        if self.method == "align" and self.samples:
            wide = [f.float() for f in used]  # weights of bfloat16 do not add up to one
            pooled = roi_align_rows(
                wide,
                boxes,
                images,
                levels,
                strides=self.strides,
                side=self.side,
                samples=self.samples,
                half_pixel=self.half_pixel,
                every=self.every,
            )
            return pooled.to(used[0].dtype)
        rois = torch.cat([images[:, None].to(boxes.dtype), boxes], dim=1)
        if len(used) == 1:
            return self._pool(used[0], rois, self.strides[0])
        side = -(-self.side // self.every)
        pooled = used[0].new_empty((len(boxes), used[0].shape[1], side, side))
        for level, stride in enumerate(self.strides):
            rows = torch.where(levels == level)[0]
            pooled.index_copy_(0, rows, self._pool(used[level], rois[rows], stride))
        return pooled

    def levels(self, boxes: Tensor) -> Tensor:
        """(R,) index of the level that each of the (R, 4) boxes is pooled from (FPN, eq. 1)."""
        ideal = CANONICAL_LEVEL + torch.log2(box_ops.area(boxes).sqrt() / CANONICAL_SIDE) + 1e-6
        finest = math.log2(self.strides[0])
        return (ideal.floor() - finest).nan_to_num(0).clamp(0, len(self.strides) - 1).long()

    def _pool(self, feature: Tensor, rois: Tensor, stride: int) -> Tensor:
        wide = feature.float()  # both operators want one dtype, and coordinates in bfloat16 are off by whole pixels
        if self.method == "pool":
            pooled = torchvision.ops.roi_pool(wide, rois, self.side, 1 / stride)
        else:
            pooled = torchvision.ops.roi_align(wide, rois, self.side, 1 / stride, self.samples, aligned=self.half_pixel)
        return pooled[:, :, :: self.every, :: self.every].to(feature.dtype)
