"""How nets of a framework are built and called, and ours with their weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from resdet.backbones.weights import load_exactly
from resdet.convert.renaming import Foreign
from resdet.convert.states import convert
from resdet.detection import build
from resdet.detection.faster_rcnn import FasterRCNN
from resdet.structures import Detections, Target

NETS = {"r50_fpn": (50, True), "r50_c4": (50, False), "r101_c4": (101, False)}
"""Depth, and whether it has a pyramid. The C4 nets stride on the first 1x1, as the paper's and detectron2's do."""
NUM_CLASSES = 80
SMALL = (64, 96)
"""Size of the image that random weights are set right on."""

Losses = Mapping[str, Tensor]
Size = tuple[int, int]


class Framework(NamedTuple):
    """How nets of a framework are built and called. Images are uint8 RGB (3, H, W) on the CPU, targets are ours."""

    build: Callable[[str, torch.device], nn.Module]
    """From a name of :data:`NETS`, with random weights."""
    set_size: Callable[[nn.Module, Size], object]
    """Tell the net the size to resize to."""
    detect: Callable[[nn.Module, Sequence[Tensor]], list[Detections]]
    losses: Callable[[nn.Module, Sequence[Tensor], Sequence[Target]], Losses]
    twin: Callable[[nn.Module, str, Size], FasterRCNN]
    """Our net with the weights of theirs."""
    last_norm: str
    """Of a bottleneck."""
    layers: tuple[str, str, str, str]
    """Objectness, deltas of the RPN, classes, deltas of the head."""
    background: int
    """Its place among the classes."""


def converted_twin(foreign: Foreign, hw: Size) -> FasterRCNN:
    """Our net with the weights and the settings of a framework's."""
    found = convert(foreign)
    arguments = {**found.arguments, "shorter_side": min(hw), "longer_side": max(hw)}
    ours = getattr(build, found.builder)(**arguments)
    load_exactly(ours, found.state, source=foreign.source)
    return ours
