"""Feature pyramid network (Lin et al. 2017, section 3): every level strong in meaning, at its own resolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from resdet.cpu.weight_gradient import convolve


class FPN(nn.Module):
    """C2 .. C5 -> P2 .. P6, all of one width.

    A 1x1 convolution per level, added to the coarser level enlarged by nearest neighbour, then a 3x3 convolution. P6,
    for the largest anchors, is every second cell of P5.

    Args:
        in_channels: of the maps, finest first.
        width: channels of every level (256 in the paper).
        strides: of the maps, finest first, in input pixels.
        batchnorm: after each of the convolutions, as torchvision's second version has it; the paper has none.

    Attributes:
        channels: of P2 .. P6.
        strides: of P2 .. P6, in input pixels.
    """

    def __init__(
        self, in_channels: Sequence[int], width: int = 256, *, strides: Sequence[int], batchnorm: bool = False
    ) -> None:
        super().__init__()
        laterals = [nn.Conv2d(channels, width, 1, bias=not batchnorm) for channels in in_channels]
        outputs = [nn.Conv2d(width, width, 3, padding=1, bias=not batchnorm) for _ in in_channels]
        for conv in (*laterals, *outputs):
            nn.init.kaiming_uniform_(conv.weight, a=1)  # Caffe2's XavierFill, which every FPN since has kept
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
        if batchnorm:
            laterals, outputs = (
                [nn.Sequential(conv, nn.BatchNorm2d(width)) for conv in convs] for convs in (laterals, outputs)
            )
        self.lateral, self.output = nn.ModuleList(laterals), nn.ModuleList(outputs)
        self.strides = (*strides, 2 * strides[-1])
        self.channels = (width,) * len(self.strides)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (N, in_channels[i], H_i, W_i) -> levels (N, width, H_i, W_i), then P6 at half of P5, rounded up."""
        merged = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        for finer in reversed(range(len(merged) - 1)):
            size = merged[finer].shape[-2:]
            merged[finer] = merged[finer] + F.interpolate(merged[finer + 1], size=size, mode="nearest")
        levels = [convolve(x, output) for output, x in zip(self.output, merged, strict=True)]
        return [*levels, F.max_pool2d(levels[-1], 1, stride=2)]
