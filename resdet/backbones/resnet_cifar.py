"""The CIFAR nets (He et al. 2015, section 4.2) and their pre-activation forms (He et al. 2016).

A 3x3 stem of 16 channels, three stages of n blocks with 16, 32 and 64 channels at 32x32, 16x16 and 8x8, global average
pooling, one linear layer. Two layers a block make 6n+2 weighted layers, bottlenecks 9n+2. Names: ``cifar-resnet20``
(shortcut A, as in the paper), ``cifar-resnet20-B``, ``cifar-plain20``, ``cifar-preresnet110`` (6n+2),
``cifar-preresnet164`` (9n+2), of any n.
"""

from __future__ import annotations

import re
from functools import partial
from typing import NamedTuple

from resdet.backbones.blocks import BasicBlock, PreBasicBlock, PreBottleneck
from resdet.backbones.resnet import ResidualNet, Stage
from resdet.errors import InputError

WIDTHS = (16, 32, 64)
STRIDES = (1, 2, 4)  # of the three stages' maps, in input pixels
SIDE = 32  # pixels of the images
BOTTLENECKS_FROM = 164  # layers of a pre-activation net: 110 and 164 were studied (He et al. 2016, Table 2)
NAME = re.compile(r"cifar-(?:(plain)(\d+)|(resnet|preresnet)(\d+)(?:-([ABC]))?)")
DEEPEST = 5_000
"""Layers; the paper's deepest net has 1,202."""

FACTS = {
    "cifar-resnet20": (269_722, 40_551_040),
    "cifar-resnet32": (464_154, 68_862_592),
    "cifar-resnet44": (658_586, 97_174_144),
    "cifar-resnet56": (853_018, 125_485_696),
    "cifar-resnet110": (1_727_962, 252_887_680),
    "cifar-resnet1202": (19_421_274, 2_829_238_912),
    "cifar-resnet20-B": (272_474, 40_813_184),
    "cifar-resnet32-B": (466_906, 69_124_736),
    "cifar-resnet44-B": (661_338, 97_436_288),
    "cifar-resnet56-B": (855_770, 125_747_840),
    "cifar-resnet110-B": (1_730_714, 253_149_824),
    "cifar-resnet1202-B": (19_424_026, 2_829_501_056),
    "cifar-resnet20-C": (283_962, 42_648_192),
    "cifar-resnet32-C": (489_594, 72_532_608),
    "cifar-resnet44-C": (695_226, 102_417_024),
    "cifar-resnet56-C": (900_858, 132_301_440),
    "cifar-resnet110-C": (1_826_202, 266_781_312),
    "cifar-resnet1202-C": (20_538_714, 2_986_263_168),
    "cifar-plain20": (269_722, 40_551_040),
    "cifar-plain32": (464_154, 68_862_592),
    "cifar-plain44": (658_586, 97_174_144),
    "cifar-plain56": (853_018, 125_485_696),
    "cifar-plain110": (1_727_962, 252_887_680),
    "cifar-preresnet110": (1_730_522, 253_149_824),
    "cifar-preresnet164": (1_703_258, 247_646_720),
    "cifar-preresnet1001": (10_327_706, 1_490_995_712),
}
"""Parameters and multiply-adds of the studied nets, with 10 classes at 32x32; the paper's Table 6 gives millions."""


class CifarNet(NamedTuple):
    """A net of this file; called with a number of classes it builds one."""

    family: str
    """``"resnet"``, ``"plain"`` or ``"preresnet"``."""
    depth: int
    shortcut: str

    @property
    def channels(self) -> tuple[int, ...]:
        """Of the three stages."""
        return tuple(width * _block(self)[0].expansion for width in WIDTHS)

    def __call__(self, num_classes: int) -> ResidualNet:
        """A net with random weights.

        Raises:
            InputError: no n gives this depth; unknown shortcut.
        """
        block, layers = _block(self)
        depth = blocks_per_stage(self.depth, layers, where=f"a CIFAR {self.family} of {self.depth} layers")
        block_with_shortcut = partial(block, shortcut=self.shortcut)
        rows = zip(WIDTHS, (1, 2, 2), strict=True)
        stages = [Stage(block_with_shortcut, depth, width, stride, block.expansion) for width, stride in rows]
        return ResidualNet("cifar", stages, num_classes=num_classes, preactivation=self.family == "preresnet")


def cifar_resnet(depth: int, num_classes: int = 10, *, shortcut: str = "A") -> ResidualNet:
    """A net of 6n+2 layers; with ``shortcut="none"`` its plain counterpart.

    Args:
        depth: 6n+2: 20, 32, 44, 56, 110, 1202, or of any other n.
        num_classes: K.
        shortcut: a name of :data:`resdet.backbones.shortcuts.SHORTCUTS`; the paper takes A.

    Raises:
        InputError: no n gives this depth; unknown shortcut.
    """
    return CifarNet("resnet", depth, shortcut)(num_classes)


def cifar_preresnet(depth: int, num_classes: int = 10, *, shortcut: str = "B") -> ResidualNet:
    """A pre-activation net: of basic blocks below 164 layers, of bottlenecks from there on, as the study's were.

    Args:
        depth: 6n+2 below 164, such as 110; then 9n+2, such as 164 and 1001.
        num_classes: K.
        shortcut: a name of :data:`resdet.backbones.shortcuts.SHORTCUTS`.

    Raises:
        InputError: no n gives this depth; unknown shortcut.
    """
    return CifarNet("preresnet", depth, shortcut)(num_classes)


def parse_name(name: str) -> CifarNet | None:
    """The net of a name such as ``cifar-resnet20-B``, or ``None`` if the name is not of this kind.

    Raises:
        InputError: no n gives this depth, or it is beyond :data:`DEEPEST`.
    """
    match = NAME.fullmatch(name)
    if match is None:
        return None
    plain, plain_depth, family, depth, shortcut = match.groups()
    default = {"resnet": "A", "preresnet": "B", None: "none"}[family]
    if int(plain_depth or depth) > DEEPEST:
        raise InputError(f"backbone name {name!r}", found=f"{plain_depth or depth} layers", needed=f"{DEEPEST} at most")
    net = CifarNet(plain or family, int(plain_depth or depth), shortcut or default)
    blocks_per_stage(net.depth, _block(net)[1], where=f"backbone name {name!r}")
    return net


def blocks_per_stage(depth: int, layers: int, *, where: str) -> int:
    """The n of a net of ``layers * n + 2`` layers.

    Raises:
        InputError: n is not whole; names the nearest depths.
    """
    n = (depth - 2) // layers
    if n < 1 or layers * n + 2 != depth:
        near = " or ".join(f"{layers * whole + 2} (n = {whole})" for whole in (n, n + 1) if whole >= 1)
        needed = f"{layers}n+2 layers with a whole n from 1 on; the nearest: {near or f'{layers + 2} (n = 1)'}"
        raise InputError(where, found=f"depth {depth}, n = {(depth - 2) / layers:.2f}", needed=needed)
    return n


def _block(net: CifarNet) -> tuple[type[BasicBlock | PreBasicBlock | PreBottleneck], int]:
    """The kind of block, and its share of the depth over the three stages."""
    if net.family != "preresnet":
        return BasicBlock, 6
    return (PreBottleneck, 9) if net.depth >= BOTTLENECKS_FROM else (PreBasicBlock, 6)
