"""Where BN and ReLU stand in a block: the orders that He et al. 2016 compared with the usual one (section 4, Fig. 4).

"Identity mappings in deep residual networks". The usual order and full pre-activation, which won, are in
:mod:`resdet.backbones.blocks`; the three here exist for the study of its Table 2.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from resdet.backbones.blocks import add_shortcut
from resdet.backbones.shortcuts import conv

StudyOrder = Literal["bn-after-addition", "relu-before-addition", "relu-only-pre"]
STUDY_ORDERS: tuple[str, ...] = get_args(StudyOrder)


class OrderedBlock(nn.Module):
    """A basic block or a bottleneck in one of three orders.

    - ``bn-after-addition`` (Fig. 4b): the last BN follows the addition, and ReLU that.
    - ``relu-before-addition`` (Fig. 4c): the last ReLU belongs to the residual, which can then only add.
    - ``relu-only-pre`` (Fig. 4d): ReLU before each convolution, BN after it, nothing after the addition.

    Args:
        in_channels: channels of the input.
        width: channels of the 3x3; the output has ``expansion`` times as many.
        stride: of the block, on the first 3x3.
        order: see above.
        bottleneck: 1x1, 3x3, 1x1 in place of two 3x3.
        shortcut: a name of :data:`resdet.backbones.shortcuts.SHORTCUTS`.
        gate_bias: initial bias of a gated shortcut.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        stride: int = 1,
        order: StudyOrder,
        bottleneck: bool = False,
        shortcut: str = "B",
        gate_bias: float | None = None,
    ) -> None:
        super().__init__()
        self.order, self.expansion = order, 4 if bottleneck else 1
        out_channels = width * self.expansion
        kernels = (1, 3, 1) if bottleneck else (3, 3)
        widths = (in_channels, width, width, out_channels) if bottleneck else (in_channels, width, width)
        strided = kernels.index(3)
        self.layers = len(kernels)
        for number, kernel in enumerate(kernels):
            layer = conv(widths[number], widths[number + 1], kernel, stride=stride if number == strided else 1)
            self.add_module(f"conv{number + 1}", layer)
            self.add_module(f"bn{number + 1}", nn.BatchNorm2d(widths[number + 1]))
        add_shortcut(self, shortcut, in_channels, out_channels, stride=stride, gate_bias=gate_bias)

    def residual(self, x: Tensor) -> Tensor:
        """F(x), before the addition."""
        for number in range(1, self.layers + 1):
            layer, norm = getattr(self, f"conv{number}"), getattr(self, f"bn{number}")
            if self.order == "relu-only-pre":
                x = norm(layer(F.relu(x)))
            elif self.order == "relu-before-addition" or number < self.layers:
                x = F.relu(norm(layer(x)))
            else:
                x = layer(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, width * expansion, H / stride, W / stride)."""
        around = self.downsample(x)
        y = self.residual(x) + around if self.join is None else self.join(x, self.residual, around)
        if self.order == "bn-after-addition":
            return F.relu(getattr(self, f"bn{self.layers}")(y))
        return y
