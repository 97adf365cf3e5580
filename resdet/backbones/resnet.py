"""The ImageNet nets of Table 1: ResNet-18, 34, 50, 101 and 152 (He et al. 2015, section 3.3).

Stem, four stages of residual blocks, global average pooling, one linear layer. State dicts of torchvision and timm load
unchanged (parity: ``tests/parity/test_resnet_parity.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from resdet.backbones.blocks import BasicBlock, Bottleneck, StrideOn

WIDTHS = (64, 128, 256, 512)  # Table 1, conv2_x .. conv5_x
STRIDES = (4, 8, 16, 32)  # of C2 .. C5: stem and max pool halve twice, then each stage once

Block = Callable[..., nn.Module]
"""``block(in_channels, width, stride=...)``: a block class, or a ``partial`` of one."""


class ResNet(nn.Module):
    """A residual net for classification.

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
        super().__init__()
        stem = widths[0]
        self.channels = tuple(width * expansion for width in widths)
        self.strides = STRIDES
        self.conv1 = nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inputs = (stem, *self.channels[:3])
        for number, (in_channels, width, depth) in enumerate(zip(inputs, widths, depths, strict=True), start=1):
            blocks = [block(in_channels, width, stride=1 if number == 1 else 2)]
            blocks += [block(width * expansion, width, stride=1) for _ in range(depth - 1)]
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(self.channels[-1], num_classes)
        he_init(self)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) normalised images -> (N, num_classes) logits."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


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
    """
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        for block in stage:
            nn.init.zeros_((block.bn3 if hasattr(block, "bn3") else block.bn2).weight)


def resnet18(num_classes: int = 1000) -> ResNet:
    """18 layers of basic blocks."""
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes=num_classes)


def resnet34(num_classes: int = 1000) -> ResNet:
    """34 layers of basic blocks."""
    return ResNet(BasicBlock, (3, 4, 6, 3), num_classes=num_classes)


def resnet50(num_classes: int = 1000, *, stride_on: StrideOn = "3x3") -> ResNet:
    """50 layers of bottlenecks."""
    return _bottlenecks((3, 4, 6, 3), num_classes, stride_on)


def resnet101(num_classes: int = 1000, *, stride_on: StrideOn = "3x3") -> ResNet:
    """101 layers of bottlenecks: the net of the detection appendices."""
    return _bottlenecks((3, 4, 23, 3), num_classes, stride_on)


def resnet152(num_classes: int = 1000, *, stride_on: StrideOn = "3x3") -> ResNet:
    """152 layers of bottlenecks."""
    return _bottlenecks((3, 8, 36, 3), num_classes, stride_on)


def _bottlenecks(depths: Sequence[int], num_classes: int, stride_on: StrideOn) -> ResNet:
    block = partial(Bottleneck, stride_on=stride_on)
    return ResNet(block, depths, num_classes=num_classes, expansion=Bottleneck.expansion)
