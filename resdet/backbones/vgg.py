"""VGG-16 (Simonyan and Zisserman 2015, configuration D), with and without BN: the net that the paper compares with.

Thirteen 3x3 convolutions in five groups, each group followed by a max pooling, then fc6, fc7 and fc8. State dicts of
torchvision load unchanged, timm's by :func:`from_timm` (parity: ``tests/parity/test_vgg_parity.py``).

As a backbone it declares conv2_x .. conv5_x before their pooling: 128, 256, 512 and 512 channels at the strides 2, 4, 8
and 16. Faster R-CNN (Ren 2015) shares conv1_1 .. conv5_3 and gives fc6 and fc7 to each region.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from resdet.backbones.resnet import he_init
from resdet.backbones.trunk import FeatureExtractor

GROUPS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of each convolution (Table 1, column D)."""
CHANNELS = tuple(group[-1] for group in GROUPS[1:])
STRIDES = (2, 4, 8, 16)
"""Of conv2_x .. conv5_x, in pixels of the input."""
TIMM = {"pre_logits.fc1": "classifier.0", "pre_logits.fc2": "classifier.3", "head.fc": "classifier.6"}
"""timm's names of fc6, fc7 and fc8; the first two are convolutions there."""


class VGG(nn.Module):
    """Groups of 3x3 convolutions and three fully connected layers, with torchvision's names.

    Args:
        groups: channels of the convolutions of each group; a 2x2 max pooling follows it.
        num_classes: K, the length of the logits.
        batchnorm: BN after each convolution. Not in the original, which is older than BN.
        hidden: width of fc6 and fc7.
        side: of the last map of a training view, which fc6 sees whole.
        dropout: share dropped after fc6 and after fc7 in training (section 3.1).

    Attributes:
        features: convolutions and poolings.
        widths: channels of the last convolution of each group.
        classifier: fc6, ReLU, dropout, fc7, ReLU, dropout, fc8.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[int]] = GROUPS,
        *,
        num_classes: int = 1000,
        batchnorm: bool = False,
        hidden: int = 4096,
        side: int = 7,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for group in groups:
            for width in group:
                layers.append(nn.Conv2d(channels, width, 3, padding=1))
                layers += [nn.BatchNorm2d(width)] if batchnorm else []
                layers.append(nn.ReLU(inplace=True))
                channels = width
            layers.append(nn.MaxPool2d(2, stride=2))
        self.features = nn.Sequential(*layers)
        self.widths = tuple(group[-1] for group in groups)
        self.avgpool = nn.AdaptiveAvgPool2d(side)  # of 224x224 views the identity; torchvision takes other sizes so
        self.classifier = nn.Sequential(
            nn.Linear(channels * side**2, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )
        self.side = side
        # Differs from the original, which starts from a trained net of 11 layers: He's initialisation needs none.
        he_init(self)
        for layer in (self.fc6, self.fc7):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        for layer in (*self.features, *self.classifier):
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.zeros_(layer.bias)

    @property
    def fc6(self) -> nn.Linear:
        """The first fully connected layer."""
        return self.classifier[0]

    @property
    def fc7(self) -> nn.Linear:
        """The second."""
        return self.classifier[3]

    @property
    def fc(self) -> nn.Module:
        """The last, fc8, under the name that it has in residual nets."""
        return self.classifier[6]

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) normalised images -> (N, num_classes) logits."""
        return self.classifier(self.avgpool(self.features(images)).flatten(1))

    def score_map(self, images: Tensor) -> Tensor:
        """The fully convolutional form (section 3.2): fc6 as a 7x7 convolution, fc7 and fc8 as 1x1 ones.

        The kernels are views of the layers' weights.

        Args:
            images: (N, 3, H, W) normalised. What is too small for one place is stretched to it, as in ``forward``.

        Returns:
            (N, K, h, w) logits of each place, 32 pixels apart; 1x1 at 224x224.
        """
        x = self.features(images)
        hw = [max(self.side, length) for length in x.shape[2:]]
        x = x if list(x.shape[2:]) == hw else F.adaptive_avg_pool2d(x, hw)
        for layer in self.classifier:
            if isinstance(layer, nn.Linear):
                side = self.side if layer is self.fc6 else 1
                x = F.conv2d(x, layer.weight.view(-1, x.shape[1], side, side), layer.bias)
            else:
                x = layer(x)
        return x


class VGGTrunk(FeatureExtractor):
    """The convolutions of a VGG, without the last pooling: one map per group but the first.

    Modules are shared with ``net``, and parameters keep their names.

    Args:
        net: a VGG of ours.

    Attributes:
        channels: of conv2_x .. conv5_x.
        strides: of conv2_x .. conv5_x, in input pixels.
    """

    def __init__(self, net: VGG) -> None:
        super().__init__()
        self.features = net.features[:-1]
        self.strides = tuple(2**group for group in range(1, len(net.widths)))
        self.channels = net.widths[1:]
        ends = [i for i, layer in enumerate(net.features) if isinstance(layer, nn.MaxPool2d)]
        starts = [0, *(end + 1 for end in ends[:-1])]
        self.groups = tuple(
            tuple(f"features.{i}" for i in range(start, end)) for start, end in zip(starts, ends, strict=True)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> maps; map i is (N, channels[i], H // strides[i], W // strides[i])."""
        x, maps = images, []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                maps.append(x)
            x = layer(x)
        return [*maps[1:], x]


def vgg16(num_classes: int = 1000) -> VGG:
    """16 layers with weights, as published."""
    return VGG(num_classes=num_classes)


def vgg16_bn(num_classes: int = 1000) -> VGG:
    """16 layers with weights, and BN after the convolutions."""
    return VGG(num_classes=num_classes, batchnorm=True)


def from_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of timm's VGG in torchvision's names; any other one as it is."""
    renamed = {}
    for key, value in state.items():
        layer, _, leaf = key.rpartition(".")
        if layer in TIMM:
            key, value = f"{TIMM[layer]}.{leaf}", value.flatten(1) if leaf == "weight" else value
        renamed[key] = value
    return renamed
