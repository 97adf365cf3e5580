"""What can be done with a net of the registry: one object for each shape of net, so that nobody asks a net what it is.

Residual nets (ours, torchvision's, timm's of the ResNet shape) serve every detector, VGGs their own, and timm's other
nets the pyramid.
"""

from __future__ import annotations

from typing import NoReturn, cast

from torch import nn

from resdet.backbones import levels
from resdet.backbones.checkpointing import checkpoint_blocks
from resdet.backbones.trunk import FeatureExtractor, Trunk, conv5_head, is_residual
from resdet.backbones.vgg import VGG, VGGTrunk
from resdet.errors import InputError


class Family:
    """How nets of one shape are taken apart. What a family cannot do is refused in the user's words.

    Attributes:
        kind: for messages, as in "a VGG".
        serves: what detectors it is the backbone of.
    """

    kind: str
    serves: str

    def class_layer(self, net: nn.Module) -> str:
        """Name of the layer with one output for each class."""
        return "fc"

    def pyramid(self, net: nn.Module, *, checkpoint: bool = False) -> FeatureExtractor:
        """C2 .. C5, for a feature pyramid; with ``checkpoint`` blocks keep only their inputs for the backward pass.

        Raises:
            InputError: nets of this family are no backbones of a pyramid.
        """
        self._refuse("a residual net, such as resnet101, or a net of timm with maps at strides 4, 8, 16 and 32")

    def conv4(self, net: nn.Module, *, checkpoint: bool = False) -> tuple[FeatureExtractor, nn.Module]:
        """C2 .. C4, and conv5_x, which runs on regions (appendix A).

        Raises:
            InputError: nets of this family have no conv5_x to take apart.
        """
        self._refuse("a residual net, such as resnet101")

    def fully_connected(self, net: nn.Module) -> tuple[FeatureExtractor, VGG]:
        """The maps up to conv5_3, and the net whose fc6 and fc7 run on regions (Ren 2015).

        Raises:
            InputError: nets of this family have no fc6 and fc7.
        """
        self._refuse("vgg16 or vgg16-bn")

    def _refuse(self, needed: str) -> NoReturn:
        raise InputError("backbone", found=self.kind, needed=f"{needed}; {self.serves}")


class Residual(Family):
    """Nets with conv1, bn1, layer1 .. layer4 and fc: Table 1, and what followed."""

    kind, serves = "a residual net", "faster_rcnn_c4 and faster_rcnn_fpn take residual nets"

    def pyramid(self, net: nn.Module, *, checkpoint: bool = False) -> FeatureExtractor:
        """The four stages."""
        return Trunk(checkpoint_blocks(net) if checkpoint else net, last=5)

    def conv4(self, net: nn.Module, *, checkpoint: bool = False) -> tuple[FeatureExtractor, nn.Module]:
        """Three stages, and the fourth."""
        net = checkpoint_blocks(net) if checkpoint else net
        return Trunk(net, last=4), conv5_head(net)


class Plain(Family):
    """VGGs of ours."""

    kind, serves = "a VGG", "faster_rcnn_vgg16 takes vgg16 and vgg16-bn"

    def class_layer(self, net: nn.Module) -> str:
        """fc8."""
        return "classifier.6"

    def fully_connected(self, net: nn.Module) -> tuple[FeatureExtractor, VGG]:
        """Thirteen convolutions; fc6 and fc7."""
        vgg = cast(VGG, net)
        return VGGTrunk(vgg), vgg


class Levels(Family):
    """Nets of timm of any shape that give maps at strides 4, 8, 16 and 32: ConvNeXt, RegNet, Swin, MobileNet ..."""

    kind, serves = "a net of timm without conv5_x to take apart", "faster_rcnn_fpn takes it"

    def class_layer(self, net: nn.Module) -> str:
        """As timm tells it."""
        return levels.class_layer(net)

    def pyramid(self, net: nn.Module, *, checkpoint: bool = False) -> FeatureExtractor:
        """The maps that timm tells of; checkpointing is timm's too."""
        if checkpoint:
            levels.checkpoint(net)
        return levels.LevelsTrunk(net)


RESIDUAL, VGG_LIKE, LEVELS = Residual(), Plain(), Levels()


def family_of(net: nn.Module) -> Family:
    """The family of a net: the only place where a net is asked what it is.

    A net of no known shape counts as residual, and what it lacks is told where it is taken apart.
    """
    if isinstance(net, VGG):
        return VGG_LIKE
    return LEVELS if callable(getattr(net, "forward_intermediates", None)) and not is_residual(net) else RESIDUAL
