"""RoIAlign (Mask R-CNN) as a weighted sum of rows: on a CPU about three times as fast as torchvision's kernel.

Seen as a table with one row of C numbers for each cell, a map gives every output bin as the weighted sum of a few rows:
four for each sampling point, by bilinear interpolation. ``embedding_bag`` sums rows at the speed of memory, and its
backward pass is as simple. The points and weights are separable, so they are computed for each axis alone. The levels
of a pyramid lie in one table, one below the other, so that no one has to ask which regions belong to which.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def roi_align_rows(
    features: Sequence[Tensor],
    boxes: Tensor,
    images: Tensor,
    levels: Tensor,
    *,
    strides: Sequence[int],
    side: int,
    samples: int,
    half_pixel: bool,
    every: int = 1,
) -> Tensor:
    """What ``torchvision.ops.roi_align`` gives for each region on its level, up to rounding.

    Args:
        features: per level (N, C, H, W); one level alone, in channels-last memory, is not copied.
        boxes: (R, 4) xyxy, frame: input.
        images: (R,) the image of each region.
        levels: (R,) its level.
        strides: of the levels, in pixels.
        side: bins per axis.
        samples: sampling points per bin and axis, 1 or more.
        half_pixel: torchvision's ``aligned``.
        every: keep every so many-th bin of each axis.

    Returns:
        (R, C, B, B), in channels-last memory; B = ceil(side / every).
    """
    tables = [f.permute(0, 2, 3, 1).flatten(0, 2) for f in features]
    table = torch.cat(tables) if len(tables) > 1 else tables[0]
    starts = [0]
    for rows in tables:
        starts.append(starts[-1] + len(rows))
    facts = [(s, *f.shape[2:], start) for s, f, start in zip(strides, features, starts, strict=False)]
    stride, height, width, start = torch.tensor(facts).to(boxes.device, non_blocking=True)[levels].unbind(1)
    corners = boxes / stride[:, None] - (0.5 if half_pixel else 0.0)
    extent = corners[:, 2:] - corners[:, :2]
    if not half_pixel:
        extent = extent.clamp(min=1)  # as torchvision does for the old convention, and only for that
    where = {"bins": side, "samples": samples, "every": every}
    x, x_weight = _points(corners[:, 0], extent[:, 0], width, **where)
    y, y_weight = _points(corners[:, 1], extent[:, 1], height, **where)
    row = (images * height)[:, None, None] + y  # (R, B, 2 samples)
    index = row[:, :, None, :, None] * width.view(-1, 1, 1, 1, 1) + x[:, None, :, None, :]
    index = index + start.view(-1, 1, 1, 1, 1)  # (R, B, B, 2 samples, 2 samples)
    weight = y_weight[:, :, None, :, None] * x_weight[:, None, :, None, :]
    points = (2 * samples) ** 2
    weights = weight.reshape(-1, points).to(table.dtype)
    pooled = F.embedding_bag(index.reshape(-1, points), table, mode="sum", per_sample_weights=weights)
    return pooled.view(*index.shape[:3], table.shape[1]).permute(0, 3, 1, 2)


def _points(
    start: Tensor, extent: Tensor, size: Tensor, *, bins: int, samples: int, every: int
) -> tuple[Tensor, Tensor]:
    """The two cells around each sampling point of an axis of (R,) sizes, and their weights: (R, B, 2 samples) each.

    A point more than one cell outside the map weighs nothing; up to there it takes the value of the border.
    """
    places = (torch.arange(bins * samples, device=start.device, dtype=start.dtype) + 0.5) / (bins * samples)
    at = start[:, None] + extent[:, None] * places
    last = (size[:, None] - 1).to(at.dtype)
    inside = (at >= -1) & (at <= last + 1)
    at = torch.minimum(at.clamp(min=0), last).nan_to_num(0)  # a place in the table, whatever becomes of the loss
    low = at.floor()
    share = at - low
    cells = torch.stack([low, torch.minimum(low + 1, last)], dim=-1).long()
    weights = torch.stack([1 - share, share], dim=-1) * inside[..., None] / samples
    return cells.view(-1, bins, 2 * samples)[:, ::every], weights.view(-1, bins, 2 * samples)[:, ::every]
