"""The two residual blocks of Fig. 5 (He et al. 2015, section 3.2) and their pre-activation forms (He et al. 2016).

Parameter names are torchvision's and timm's, so that state dicts of either library load unchanged: the shortcut is
called ``downsample``.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from resdet.backbones.shortcuts import conv, join, shortcut
from resdet.cpu.folding import conv_norm, conv_relu
from resdet.errors import InputError

StrideOn = Literal["3x3", "1x1"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (Fig. 5 left; ResNet-18 and 34).

    Args:
        in_channels: channels of the input.
        width: channels of both convolutions, and of the output.
        stride: of the first convolution and of the shortcut.
        shortcut: a name of :data:`resdet.backbones.shortcuts.SHORTCUTS`.
        gate_bias: initial bias of a gated shortcut.
    """

    expansion = 1
    folded = False  # by fold_batchnorm: there are no norms, and the addition goes with the last convolution

    def __init__(
        self, in_channels: int, width: int, *, stride: int = 1, shortcut: str = "B", gate_bias: float | None = None
    ) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, width, 3, stride=stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        add_shortcut(self, shortcut, in_channels, width, stride=stride, gate_bias=gate_bias)

    def residual(self, x: Tensor) -> Tensor:
        """F(x), before the addition."""
        return conv_norm(self._inner(x), self.conv2, self.bn2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, width, H / stride, W / stride)."""
        if self.join is not None:
            return F.relu(self.join(x, self.residual, self.downsample(x)))
        if self.folded:
            return conv_relu(self._inner(x), self.conv2, add=self.downsample(x))
        return F.relu(self.residual(x) + self.downsample(x), inplace=True)

    def _inner(self, x: Tensor) -> Tensor:
        return conv_relu(x, self.conv1, self.bn1)


class Bottleneck(nn.Module):
    """1x1 reduces, 3x3, 1x1 restores, and a shortcut (Fig. 5 right; ResNet-50, 101 and 152).

    Args:
        in_channels: channels of the input.
        width: the output has ``expansion`` times as many channels, the 3x3 as many unless it has groups.
        stride: of the block.
        stride_on: the convolution that strides: ``"3x3"`` (today's "v1.5": torchvision, timm) or the first ``"1x1"``
            (the paper's own nets, "Caffe style"). The weights of one give wrong answers in the other without an error.
        shortcut: a name of :data:`resdet.backbones.shortcuts.SHORTCUTS`.
        groups: of the 3x3 (Xie et al. 2017, "Aggregated residual transformations", ResNeXt): 32 in ``32x8d``.
        width_per_group: of the 3x3 in a block of width 64, in proportion in the wider ones: 8 in ``32x8d``.
    """

    expansion = 4
    folded = False  # as in BasicBlock

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        stride: int = 1,
        stride_on: StrideOn = "3x3",
        shortcut: str = "B",
        gate_bias: float | None = None,
        groups: int = 1,
        width_per_group: int = 64,
    ) -> None:
        super().__init__()
        if stride_on not in get_args(StrideOn):
            raise InputError("Bottleneck(stride_on=...)", found=repr(stride_on), needed="'3x3' or '1x1'")
        inner = width * width_per_group // 64 * groups
        self.conv1 = conv(in_channels, inner, 1, stride=stride if stride_on == "1x1" else 1)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = conv(inner, inner, 3, stride=stride if stride_on == "3x3" else 1, groups=groups)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = conv(inner, width * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        add_shortcut(self, shortcut, in_channels, width * self.expansion, stride=stride, gate_bias=gate_bias)

    def residual(self, x: Tensor) -> Tensor:
        """F(x), before the addition."""
        return conv_norm(self._inner(x), self.conv3, self.bn3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, 4 width, H / stride, W / stride)."""
        if self.join is not None:
            return F.relu(self.join(x, self.residual, self.downsample(x)))
        if self.folded:
            return conv_relu(self._inner(x), self.conv3, add=self.downsample(x))
        return F.relu(self.residual(x) + self.downsample(x), inplace=True)

    def _inner(self, x: Tensor) -> Tensor:
        return conv_relu(conv_relu(x, self.conv1, self.bn1), self.conv2, self.bn2)


class PreBasicBlock(nn.Module):
    """BN, ReLU, 3x3 twice, and nothing after the addition (He et al. 2016, Fig. 1b and section 4).

    Args:
        in_channels: channels of the input.
        width: channels of both convolutions, and of the output.
        stride: of the first convolution and of the shortcut.
        shortcut: a name of :data:`resdet.backbones.shortcuts.SHORTCUTS`; its projections have no BN.
        first: x is the stem's output, activated already (He et al. 2016, appendix): there is no ``bn1``.
    """

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        stride: int = 1,
        shortcut: str = "B",
        gate_bias: float | None = None,
        first: bool = False,
    ) -> None:
        super().__init__()
        self.bn1 = nn.Identity() if first else nn.BatchNorm2d(in_channels)
        self.conv1 = conv(in_channels, width, 3, stride=stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3)
        add_shortcut(self, shortcut, in_channels, width, stride=stride, gate_bias=gate_bias, batchnorm=False)

    def residual(self, activated: Tensor) -> Tensor:
        """F(x) of the activated x, before the addition."""
        return self.conv2(F.relu(self.bn2(self.conv1(activated)), inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, width, H / stride, W / stride)."""
        return _preactivated(self, x)


class PreBottleneck(nn.Module):
    """BN, ReLU, convolution for each of 1x1, 3x3, 1x1, and nothing after the addition (He et al. 2016, appendix).

    Args:
        in_channels: channels of the input.
        width: channels of the 3x3, which strides; the output has ``expansion`` times as many.
        stride: of the block.
        shortcut: a name of :data:`resdet.backbones.shortcuts.SHORTCUTS`; its projections have no BN.
        first: x is the stem's output, activated already: there is no ``bn1``.
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        stride: int = 1,
        shortcut: str = "B",
        gate_bias: float | None = None,
        first: bool = False,
    ) -> None:
        super().__init__()
        self.bn1 = nn.Identity() if first else nn.BatchNorm2d(in_channels)
        self.conv1 = conv(in_channels, width, 1)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride=stride)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, width * self.expansion, 1)
        add_shortcut(
            self, shortcut, in_channels, width * self.expansion, stride=stride, gate_bias=gate_bias, batchnorm=False
        )

    def residual(self, activated: Tensor) -> Tensor:
        """F(x) of the activated x, before the addition."""
        x = F.relu(self.bn2(self.conv1(activated)), inplace=True)
        x = F.relu(self.bn3(self.conv2(x)), inplace=True)
        return self.conv3(x)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, 4 width, H / stride, W / stride)."""
        return _preactivated(self, x)


def add_shortcut(
    block: nn.Module,
    kind: str,
    in_channels: int,
    out_channels: int,
    *,
    stride: int,
    batchnorm: bool = True,
    gate_bias: float | None = None,
) -> None:
    """Give a block its ``downsample``, the path beside the residual, and its ``join``, how both are added."""
    block.resizes = stride != 1 or in_channels != out_channels
    how = {"stride": stride, "gate_bias": gate_bias}
    block.downsample = shortcut(kind, in_channels, out_channels, batchnorm=batchnorm, **how)
    block.join = join(kind, in_channels, out_channels, **how)


def _preactivated(block: PreBasicBlock | PreBottleneck, x: Tensor) -> Tensor:
    """Where the size changes both paths start from the activated x (He et al. 2016, appendix); else x goes on as is."""
    activated = F.relu(block.bn1(x))
    around = block.downsample(activated if block.resizes else x)
    if block.join is not None:
        return block.join(activated, block.residual, around)
    return block.residual(activated) + around
