"""Anchors: the reference boxes of the RPN (Ren et al. 2015, section 3.1.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from resdet.errors import InputError


class Anchors(nn.Module):
    """One set of reference boxes per feature level, centred on the multiples of the level's stride.

    Each anchor of size s and ratio r (height / width) has area s^2; corners are rounded to whole pixels, as in the
    original code and in torchvision.

    Args:
        sizes: per level, the anchor sides in input pixels; ``[(32,), (64,), ...]`` for FPN, ``[(64, 128, 256, 512)]``
            for a single-level net.
        strides: per level, the declared stride in input pixels.
        ratios: height over width, used at every level.
        rounded: corners of the anchors of a cell to whole pixels, as in torchvision.
        inferred_strides: along each axis the side of the batch over that of the map, rounded down, as torchvision; the
            declared ones are the strides of the maps. They differ where a side is no multiple of the stride: 61 of 64
            for P6 of 800 pixels, so that what an image is padded to moves its largest anchors.
    """

    def __init__(
        self,
        sizes: Sequence[Sequence[float]],
        strides: Sequence[int],
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
        *,
        rounded: bool = True,
        inferred_strides: bool = False,
    ) -> None:
        super().__init__()
        if len(sizes) != len(strides):
            needed = f"one group for each of the {len(strides)} feature levels"
            raise InputError("anchor sizes", found=f"{len(sizes)} groups: {list(sizes)}", needed=needed)
        self.strides, self.inferred_strides = tuple(strides), inferred_strides
        cells = [_cell(level, ratios) for level in sizes]
        self.cells = [cell.round() for cell in cells] if rounded else cells
        self.per_cell = len(self.cells[0])
        self._kept: dict[tuple, list[Tensor]] = {}

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Per level (H * W * A, 4) anchors of the maps, row by row, the A anchors of a cell together.

        They depend on sizes alone, so they are computed once per combination of sizes and kept.
        """
        key = (features[0].device, *(f.shape[-2:] for f in features))
        if key not in self._kept:
            if len(self._kept) >= 64:  # multi-scale training on images of many shapes must not fill the memory
                self._kept.clear()
            self._kept[key] = [
                _grid(cell.to(f.device), f.shape[-2:], stride)
                for cell, f, stride in zip(self.cells, features, self._steps(features), strict=True)
            ]
        return self._kept[key]

    def _steps(self, features: Sequence[Tensor]) -> list[tuple[int, ...]]:
        """(down, across) from cell to cell of each map, in input pixels."""
        if not self.inferred_strides:
            return [(stride, stride) for stride in self.strides]
        batch_hw = [self.strides[0] * side for side in features[0].shape[-2:]]
        return [tuple(whole // side for whole, side in zip(batch_hw, f.shape[-2:], strict=True)) for f in features]


def _cell(sizes: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """(A, 4) anchors around the origin, ratios outermost."""
    roots = torch.tensor(ratios, dtype=torch.float32).sqrt()[:, None]
    sides = torch.tensor(sizes, dtype=torch.float32)[None]
    half_w, half_h = (sides / roots).flatten() / 2, (sides * roots).flatten() / 2
    return torch.stack([-half_w, -half_h, half_w, half_h], dim=1)


def _grid(cell: Tensor, hw: Sequence[int], steps: Sequence[int]) -> Tensor:
    y, x = (torch.arange(n, device=cell.device, dtype=torch.float32) * s for n, s in zip(hw, steps, strict=True))
    shift = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1] * 2, dim=-1)  # (H, W, 4) of (x, y, x, y)
    return (shift[:, :, None] + cell).reshape(-1, 4)
