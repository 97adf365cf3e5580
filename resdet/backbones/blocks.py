"""The two residual blocks of Fig. 5 and the projection shortcut (He et al. 2015, section 3.2 and option B of 3.3).

Parameter names are torchvision's and timm's, so that state dicts of either library load unchanged: the shortcut is
called ``downsample``.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from resdet.errors import InputError

StrideOn = Literal["3x3", "1x1"]


def conv(in_channels: int, out_channels: int, kernel: int, *, stride: int = 1) -> nn.Conv2d:
    """A convolution as the paper's nets use it: "same" padding, no bias (BN follows)."""
    return nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False)


def projection(in_channels: int, out_channels: int, *, stride: int) -> nn.Module:
    """Shortcut option B: a 1x1 convolution with BN where the size or the width changes, identity elsewhere."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(conv(in_channels, out_channels, 1, stride=stride), nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (Fig. 5 left; ResNet-18 and 34).

    Args:
        in_channels: channels of the input.
        width: channels of both convolutions, and of the output.
        stride: of the first convolution and of the shortcut.
    """

    expansion = 1

    def __init__(self, in_channels: int, width: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, width, 3, stride=stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = projection(in_channels, width, stride=stride)

    def residual(self, x: Tensor) -> Tensor:
        """F(x), before the addition."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return self.bn2(self.conv2(x))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, width, H / stride, W / stride)."""
        return F.relu(self.residual(x) + self.downsample(x), inplace=True)


class Bottleneck(nn.Module):
    """1x1 reduces, 3x3, 1x1 restores, and a shortcut (Fig. 5 right; ResNet-50, 101 and 152).

    Args:
        in_channels: channels of the input.
        width: channels of the 3x3; the output has ``expansion`` times as many.
        stride: of the block.
        stride_on: the convolution that strides: ``"3x3"`` (today's "v1.5": torchvision, timm) or the first ``"1x1"``
            (the paper's own nets, "Caffe style"). The weights of one give wrong answers in the other without an error.
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, *, stride: int = 1, stride_on: StrideOn = "3x3") -> None:
        super().__init__()
        if stride_on not in get_args(StrideOn):
            raise InputError("Bottleneck(stride_on=...)", found=repr(stride_on), needed="'3x3' or '1x1'")
        self.conv1 = conv(in_channels, width, 1, stride=stride if stride_on == "1x1" else 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride=stride if stride_on == "3x3" else 1)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, width * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.downsample = projection(in_channels, width * self.expansion, stride=stride)

    def residual(self, x: Tensor) -> Tensor:
        """F(x), before the addition."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        return self.bn3(self.conv3(x))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, 4 width, H / stride, W / stride)."""
        return F.relu(self.residual(x) + self.downsample(x), inplace=True)
