"""The ImageNet nets of Table 1: ResNet-18, 34, 50, 101 and 152, and plain-18 and 34 (He et al. 2015, section 3.3).

Stem, stages of residual blocks, global average pooling, one linear layer. State dicts of torchvision and timm load
unchanged (parity: ``tests/parity/test_resnet_parity.py``). ResNet-200 is the pre-activation net of He et al. 2016.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from resdet.backbones.blocks import BasicBlock, Bottleneck, PreBottleneck, StrideOn
from resdet.backbones.shortcuts import conv
from resdet.errors import InputError, nearest

WIDTHS = (64, 128, 256, 512)  # Table 1, conv2_x .. conv5_x
STRIDES = (4, 8, 16, 32)  # of C2 .. C5: stem and max pool halve twice, then each stage once

Block = Callable[..., nn.Module]
"""``block(in_channels, width, stride=...)``: a block class, or a ``partial`` of one."""
StemName = Literal["imagenet", "cifar", "deep"]


class Stage(NamedTuple):
    """Blocks on maps of one size."""

    block: Block
    depth: int
    """Number of blocks."""
    width: int
    """Channels, before the block's expansion."""
    stride: int
    """Of the first block."""
    expansion: int = 1
    """Output channels of a block over its width."""


class ResidualNet(nn.Module):
    """A residual net for classification, of any stem and any number of stages (``layer1``, ``layer2``, ...).

    Args:
        stem: ``"imagenet"`` (7x7 and max pooling, stride 4), ``"cifar"`` (3x3, stride 1), or ``"deep"`` (three 3x3 in
            place of the 7x7: He et al. 2019, "Bag of tricks", ResNet-C); as wide as the first stage.
        stages: the blocks.
        num_classes: K, the length of the logits.
        preactivation: the blocks are of the pre-activation order: BN and ReLU follow the last stage.
        dropout: share of the pooled features dropped before the linear layer; the paper drops none.

    Attributes:
        channels: of each stage's output.
        strides: of each stage's output, in pixels of the input.
        unfit_for_trunk: why :class:`resdet.backbones.trunk.Trunk` refuses the net, or ``None``.
    """

    def __init__(
        self,
        stem: StemName,
        stages: Sequence[Stage],
        *,
        num_classes: int,
        preactivation: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        in_channels = stages[0].width
        stride = 1 if stem == "cifar" else 4
        self.conv1, self.maxpool = _stem(stem, in_channels)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu = nn.ReLU(inplace=True)
        self.channels, self.strides = (), ()
        for number, stage in enumerate(stages, start=1):
            first = {"first": True} if preactivation and number == 1 else {}
            out_channels = stage.width * stage.expansion
            blocks = [stage.block(in_channels, stage.width, stride=stage.stride, **first)]
            blocks += [stage.block(out_channels, stage.width, stride=1) for _ in range(stage.depth - 1)]
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
            in_channels, stride = out_channels, stride * stage.stride
            self.channels, self.strides = (*self.channels, out_channels), (*self.strides, stride)
        self.preactivation = preactivation
        self.unfit_for_trunk = _unfit(stem, len(stages), preactivation=preactivation)
        if preactivation:
            self.bn = nn.BatchNorm2d(in_channels)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.fc = nn.Linear(in_channels, num_classes)
        he_init(self)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) normalised images -> (N, num_classes) logits."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for stage in stages_of(self):
            x = stage(x)
        if self.preactivation:
            x = F.relu(self.bn(x))
        return self.fc(self.dropout(self.avgpool(x).flatten(1)))


class ResNet(ResidualNet):
    """A residual net for ImageNet: the 7x7 stem and four stages, each after the first at half the size.

    Args:
        block: :class:`BasicBlock`, :class:`Bottleneck` or one's own; built as ``block(in_channels, width, stride=s)``.
        depths: blocks per stage, conv2_x to conv5_x.
        widths: channels per stage, before the block's expansion.
        num_classes: K, the length of the logits.
        expansion: output channels of a block over its width.

    Attributes:
        channels: of C2 .. C5.
        strides: of C2 .. C5, in pixels of the input.
    """

    def __init__(
        self,
        block: Block,
        depths: Sequence[int],
        *,
        widths: Sequence[int] = WIDTHS,
        num_classes: int = 1000,
        expansion: int = 1,
    ) -> None:
        stages = imagenet_stages(block, depths, widths=widths, expansion=expansion)
        super().__init__("imagenet", stages, num_classes=num_classes)


def imagenet_stages(
    block: Block, depths: Sequence[int], *, widths: Sequence[int] = WIDTHS, expansion: int = 1
) -> list[Stage]:
    """conv2_x to conv5_x of Table 1."""
    rows = zip(widths, depths, (1, 2, 2, 2), strict=True)
    return [Stage(block, depth, width, stride, expansion) for width, depth, stride in rows]


def stages_of(net: nn.Module) -> list[nn.Module]:
    """``layer1``, ``layer2``, ... of a residual net: ours, torchvision's or timm's."""
    stages, number = [], 1
    while hasattr(net, f"layer{number}"):
        stages.append(getattr(net, f"layer{number}"))
        number += 1
    return stages


def blocks_of(net: nn.Module) -> list[nn.Module]:
    """The residual blocks of a net, in order.

    Raises:
        InputError: it has none.
    """
    if not stages_of(net):
        found, needed = f"{type(net).__name__} without layer1", "a residual net"
        raise InputError("residual blocks of a net", found=found, needed=needed)
    return [block for stage in stages_of(net) for block in stage]


def _stem(name: StemName, width: int) -> tuple[nn.Module, nn.Module]:
    """conv1 and the max pooling; BN and ReLU come between."""
    if name not in get_args(StemName):
        raise InputError("stem", found=repr(name), needed=nearest(name, get_args(StemName)))
    if name == "cifar":
        return conv(3, width, 3), nn.Identity()
    pool = nn.MaxPool2d(3, stride=2, padding=1)
    if name == "imagenet":
        return conv(3, width, 7, stride=2), pool
    half = width // 2
    layers = [conv(3, half, 3, stride=2), nn.BatchNorm2d(half), nn.ReLU(inplace=True)]
    layers += [conv(half, half, 3), nn.BatchNorm2d(half), nn.ReLU(inplace=True), conv(half, width, 3)]
    return nn.Sequential(*layers), pool


def _unfit(stem: StemName, stages: int, *, preactivation: bool) -> str | None:
    if stem == "cifar":
        return "the CIFAR stem, for 32x32 images"
    if preactivation:
        return "pre-activation blocks, whose sums are not activated until the next block or the last BN"
    return None if stages == 4 else f"{stages} stages"


def he_init(net: nn.Module) -> None:
    """Draw every convolution from N(0, 2 / fan_out) (He et al. 2015, "Delving deep into rectifiers", eq. 14).

    BN starts as the identity and the linear layer keeps torch's default.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def zero_init_residual(net: nn.Module) -> None:
    """Start every block as the identity: zero the scale of its last BN (Goyal et al. 2017, section 5.1).

    Differs from the paper: today's recipes gain about 0.2% top-1 from it. Works on any net that calls its blocks' last
    BN ``bn3`` or ``bn2``: ours, torchvision's and timm's.

    Raises:
        InputError: the net is of the pre-activation order, whose residuals do not end in a BN.
    """
    if getattr(net, "preactivation", False):
        found, needed = "a pre-activation net, whose residuals end in a convolution", "a net of the usual order"
        raise InputError("zero_last_bn", found=found, needed=needed)
    for block in blocks_of(net):
        nn.init.zeros_((block.bn3 if hasattr(block, "bn3") else block.bn2).weight)


def resnet18(num_classes: int = 1000, *, shortcut: str = "B", widths: Sequence[int] = WIDTHS) -> ResNet:
    """18 layers of basic blocks."""
    return ResNet(partial(BasicBlock, shortcut=shortcut), (2, 2, 2, 2), widths=widths, num_classes=num_classes)


def resnet34(num_classes: int = 1000, *, shortcut: str = "B") -> ResNet:
    """34 layers of basic blocks."""
    return ResNet(partial(BasicBlock, shortcut=shortcut), (3, 4, 6, 3), num_classes=num_classes)


def resnet50(num_classes: int = 1000, *, stride_on: StrideOn = "3x3", shortcut: str = "B") -> ResNet:
    """50 layers of bottlenecks."""
    return _bottlenecks((3, 4, 6, 3), num_classes, stride_on=stride_on, shortcut=shortcut)


def resnet101(num_classes: int = 1000, *, stride_on: StrideOn = "3x3", shortcut: str = "B") -> ResNet:
    """101 layers of bottlenecks: the net of the detection appendices."""
    return _bottlenecks((3, 4, 23, 3), num_classes, stride_on=stride_on, shortcut=shortcut)


def resnet152(num_classes: int = 1000, *, stride_on: StrideOn = "3x3", shortcut: str = "B") -> ResNet:
    """152 layers of bottlenecks."""
    return _bottlenecks((3, 8, 36, 3), num_classes, stride_on=stride_on, shortcut=shortcut)


def resnext(depths: Sequence[int], num_classes: int = 1000, *, groups: int, width_per_group: int) -> ResNet:
    """Bottlenecks whose 3x3 convolution is in groups (Xie et al. 2017): "32x8d" is 32 groups, 8 wide in conv2_x."""
    block = partial(Bottleneck, groups=groups, width_per_group=width_per_group)
    return ResNet(block, depths, num_classes=num_classes, expansion=Bottleneck.expansion)


def preresnet200(num_classes: int = 1000) -> ResidualNet:
    """200 layers of pre-activation bottlenecks (He et al. 2016, section 5)."""
    stages = imagenet_stages(PreBottleneck, (3, 24, 36, 3), expansion=PreBottleneck.expansion)
    return ResidualNet("imagenet", stages, num_classes=num_classes, preactivation=True)


def _bottlenecks(depths: Sequence[int], num_classes: int, *, stride_on: StrideOn, shortcut: str) -> ResNet:
    block = partial(Bottleneck, stride_on=stride_on, shortcut=shortcut)
    return ResNet(block, depths, num_classes=num_classes, expansion=Bottleneck.expansion)
