"""How nets of a framework are built and called, and ours with their weights."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from resdet.backbones.weights import load_exactly
from resdet.convert.states import convert
from resdet.detection import build
from resdet.detection.faster_rcnn import FasterRCNN

NETS = {"r50_fpn": (50, True), "r50_c4": (50, False), "r101_c4": (101, False)}
"""Depth, and whether it has a pyramid. The C4 nets stride on the first 1x1, as the paper's and detectron2's do."""
NUM_CLASSES = 80
SMALL = (64, 96)
"""Size of the image that random weights are set right on."""

Losses = Mapping[str, Tensor]
Size = tuple[int, int]


class Framework:
    """How nets of a framework are built and called. Images are uint8 RGB (3, H, W) on the CPU, targets are ours.

    Each has ``build(name)``, a net of :data:`NETS` with random weights on the CPU; ``detect(net, images)``;
    ``losses(net, images, targets)``; ``foreign(net)``, its weights to be converted.
    """

    last_norm: str
    """Of a bottleneck."""
    layers: tuple[str, str, str, str]
    """Objectness, deltas of the RPN, classes, deltas of the head."""
    background = -1
    """Its place among the classes."""

    def set_size(self, net: nn.Module, hw: Size) -> None:
        """Tell the net the size to resize to, where it does so itself."""

    def twin(self, theirs: nn.Module, name: str, hw: Size) -> FasterRCNN:
        """Our net with the weights and the settings of theirs."""
        foreign = self.foreign(theirs)
        found = convert(foreign)
        arguments = {**found.arguments, "shorter_side": min(hw), "longer_side": max(hw)}
        ours = getattr(build, found.builder)(**arguments)
        load_exactly(ours, found.state, source=foreign.source)
        return ours
