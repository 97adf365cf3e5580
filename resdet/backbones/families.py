"""What can be done with a net of the registry: one object for each shape of net, so that nobody asks a net what it is.

Residual nets (ours, torchvision's, timm's of the ResNet shape) serve every detector, VGGs their own, and timm's other
nets the pyramid.
"""

from __future__ import annotations

from typing import ClassVar, NoReturn, cast

from torch import nn

from resdet.backbones.checkpointing import checkpoint_blocks
from resdet.backbones.levels import LevelsTrunk, checkpoint_levels, class_layer
from resdet.backbones.trunk import FeatureExtractor, Trunk, check_residual, conv5_head, is_residual
from resdet.backbones.vgg import VGG, VGGTrunk
from resdet.errors import InputError


class Family:
    """How a net is taken apart. What its family cannot do is refused in the user's words.

    Args:
        net: the classification net; its parts are shared with what is made of it.
        where: for messages.
    """

    serves: ClassVar[str]
    """What detectors it is a backbone of."""

    def __init__(self, net: nn.Module, where: str) -> None:
        self.net, self.where = net, where

    @property
    def class_layer(self) -> str:
        """Name of the layer with one output for each class."""
        return "fc"

    def pyramid(self, *, checkpoint: bool = False) -> FeatureExtractor:
        """C2 .. C5, for a feature pyramid; with ``checkpoint`` blocks keep only their inputs for the backward pass.

        Raises:
            InputError: nets of this family are no backbones of a pyramid.
        """
        self._refuse("a residual net, such as resnet101, or a net of timm with maps at strides 4, 8, 16 and 32")

    def conv4(self, *, checkpoint: bool = False) -> tuple[FeatureExtractor, nn.Module]:
        """C2 .. C4, and conv5_x, which runs on regions (appendix A).

        Raises:
            InputError: nets of this family have no conv5_x to take apart.
        """
        self._refuse("a residual net, such as resnet101")

    def fully_connected(self) -> tuple[FeatureExtractor, VGG]:
        """The maps up to conv5_3, and the net whose fc6 and fc7 run on regions (Ren 2015).

        Raises:
            InputError: nets of this family have no fc6 and fc7.
        """
        self._refuse("vgg16 or vgg16-bn")

    def _refuse(self, needed: str) -> NoReturn:
        raise InputError(self.where, found=f"a {type(self.net).__name__}", needed=f"{needed}; {self.serves}")


class Residual(Family):
    """Nets with conv1, bn1, layer1 .. layer4 and fc: Table 1, and what followed."""

    serves = "faster_rcnn_c4 and faster_rcnn_fpn take residual nets"

    def pyramid(self, *, checkpoint: bool = False) -> FeatureExtractor:
        """The four stages."""
        check_residual(self.net, where=self.where)
        return Trunk(checkpoint_blocks(self.net) if checkpoint else self.net, last=5)

    def conv4(self, *, checkpoint: bool = False) -> tuple[FeatureExtractor, nn.Module]:
        """Three stages, and the fourth."""
        check_residual(self.net, where=self.where)
        net = checkpoint_blocks(self.net) if checkpoint else self.net
        return Trunk(net, last=4), conv5_head(net)


class FullyConnected(Family):
    """VGGs of ours."""

    serves = "faster_rcnn_vgg16 takes vgg16 and vgg16-bn"

    @property
    def class_layer(self) -> str:
        """fc8."""
        return "classifier.6"

    def fully_connected(self) -> tuple[FeatureExtractor, VGG]:
        """Thirteen convolutions; fc6 and fc7."""
        net = cast(VGG, self.net)
        return VGGTrunk(net), net


class Levels(Family):
    """Nets of timm of any shape that give maps at strides 4, 8, 16 and 32: ConvNeXt, RegNet, Swin, MobileNet ..."""

    serves = "faster_rcnn_fpn takes it"

    @property
    def class_layer(self) -> str:
        """As timm tells it."""
        return class_layer(self.net, where=self.where)

    def pyramid(self, *, checkpoint: bool = False) -> FeatureExtractor:
        """The maps that timm tells of; checkpointing is timm's too."""
        trunk = LevelsTrunk(self.net, where=self.where)
        if checkpoint:
            checkpoint_levels(trunk.net, where=self.where)
        return trunk


def family_of(net: nn.Module, where: str = "backbone") -> Family:
    """The family of a net: the only place where a net is asked what it is.

    A net of no known shape counts as residual, and what it lacks is told where it is taken apart.

    Args:
        net: a classification net.
        where: of messages, as in "backbone 'resnet50' of faster_rcnn_fpn".
    """
    if isinstance(net, VGG):
        return FullyConnected(net, where)
    if callable(getattr(net, "forward_intermediates", None)) and not is_residual(net):
        return Levels(net, where)
    return Residual(net, where)
