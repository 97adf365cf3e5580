"""Make your own residual net: a description of scalars, registered under a name, from a config or from code.

In a config::

    backbone = dict(
        type=define_net,
        name="mine",
        stem="deep",
        stages=(("basic", 2, 32, 1), ("basic", 2, 64, 2), ("basic", 2, 128, 2), ("basic", 2, 256, 2)),
        shortcut="C",
    )
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, NoReturn, get_args

import torch

from resdet.backbones.blocks import BasicBlock, Bottleneck, PreBasicBlock, PreBottleneck
from resdet.backbones.counting import count
from resdet.backbones.orders import STUDY_ORDERS, OrderedBlock
from resdet.backbones.registry import BACKBONES, Backbone
from resdet.backbones.resnet import ResidualNet, Stage, StemName
from resdet.backbones.resnet_cifar import parse_name
from resdet.errors import InputError, nearest

EXPANSION = {"basic": 1, "bottleneck": 4}
"""Output channels of a block over its width."""
Order = Literal["post", "pre", "bn-after-addition", "relu-before-addition", "relu-only-pre"]
BLOCKS: dict[str, dict[str, Callable[..., Any]]] = {
    "post": {"basic": BasicBlock, "bottleneck": Bottleneck},
    "pre": {"basic": PreBasicBlock, "bottleneck": PreBottleneck},
    **{
        order: {name: partial(OrderedBlock, order=order, bottleneck=name == "bottleneck") for name in EXPANSION}
        for order in STUDY_ORDERS
    },
}
"""By activation order and by name."""


class NetDescription(NamedTuple):
    """A residual net in plain values; called with a number of classes it builds one."""

    stem: StemName
    stages: tuple[tuple[str, int, int, int], ...]
    shortcut: str
    order: Order
    dropout: float
    gate_bias: float | None = None

    def __call__(self, num_classes: int) -> ResidualNet:
        """A net with random weights."""
        return residual_net(**self._asdict(), num_classes=num_classes)


def residual_net(
    *,
    stem: StemName,
    stages: Sequence[tuple[str, int, int, int]],
    shortcut: str = "B",
    order: Order = "post",
    dropout: float = 0.0,
    gate_bias: float | None = None,
    num_classes: int = 1000,
) -> ResidualNet:
    """A residual net from scalars.

    Args:
        stem: ``"imagenet"``, ``"deep"`` (both stride 4) or ``"cifar"`` (stride 1), as wide as the first stage.
        stages: (block, depth, width, stride) of each: ``"basic"`` or ``"bottleneck"`` (whose output has 4 times its
            width), number of blocks, channels, stride of the first block.
        shortcut: a name of :data:`resdet.backbones.shortcuts.SHORTCUTS`.
        order: ``"post"`` (convolution, BN, ReLU: the paper), ``"pre"`` (BN, ReLU, convolution: He et al. 2016), or one
            of that paper's study (:mod:`resdet.backbones.orders`).
        dropout: share of the pooled features dropped before the linear layer.
        gate_bias: initial bias of gated shortcuts; None: the best that was found.
        num_classes: K.

    Raises:
        InputError: an unknown name, or a stage that is not four such values.
    """
    if order not in get_args(Order):
        raise InputError("residual_net(order=...)", found=repr(order), needed=nearest(str(order), get_args(Order)))
    if not 0 <= dropout < 1:
        raise InputError("residual_net(dropout=...)", found=dropout, needed="a share in [0, 1)")
    if not stages:
        raise InputError("residual_net(stages=...)", found="none", needed="at least one (block, depth, width, stride)")
    how = {"shortcut": shortcut, "gate_bias": gate_bias}
    rows = [_stage(number, row, how, order=order) for number, row in enumerate(stages, start=1)]
    return ResidualNet(stem, rows, num_classes=num_classes, preactivation=order == "pre", dropout=dropout)


def define_net(
    *,
    name: str,
    stem: StemName,
    stages: Sequence[tuple[str, int, int, int]],
    shortcut: str = "B",
    order: Order = "post",
    dropout: float = 0.0,
    gate_bias: float | None = None,
) -> str:
    """Register a described net, so that ``backbone="<name>"`` builds it. To say the same twice is no error.

    A net with the ImageNet or deep stem, four stages and the order ``"post"`` serves as a detector's backbone.

    Args:
        name: free, without a slash, and none of the CIFAR nets', which the registry reads from the name.
        stem: as in :func:`residual_net`, like all that follow.
        stages: (block, depth, width, stride) of each.
        shortcut: of every block.
        order: of BN, ReLU and convolution.
        dropout: before the linear layer.
        gate_bias: of gated shortcuts.

    Returns:
        The name.

    Raises:
        InputError: the name is taken by another net; the description is wrong.
    """
    rows = tuple(tuple(row) if isinstance(row, (tuple, list)) else row for row in stages)
    description = NetDescription(stem, rows, shortcut, order, dropout, gate_bias)
    if name in BACKBONES or parse_name(name):
        known = BACKBONES[name].builder
        if known == description:
            return name
        _refuse_second(name, known, description)
    side, classes = (32, 10) if stem == "cifar" else (224, 1000)
    with torch.device("meta"):  # facts without weights
        net = description(classes)
    facts = count(net, (side, side))._asdict()
    entry = Backbone(description, net.channels, net.strides, **facts, image_side=side, classes=classes)
    BACKBONES.add(name, entry)
    return name


def _refuse_second(name: str, known: Any, description: NetDescription) -> NoReturn:
    found, needed = "a net of the registry has this name", "a name not taken yet"
    if isinstance(known, NetDescription):
        pairs = zip(description._fields, known, description, strict=True)
        found = "two nets: " + ", ".join(f"{field}={old!r} and {new!r}" for field, old, new in pairs if old != new)
        needed = "a name not taken yet: files whose nets differ but have one name cannot be used together"
    raise InputError(f"define_net(name={name!r})", found=found, needed=needed)


def _stage(number: int, row: Any, how: dict[str, Any], *, order: Order) -> Stage:
    where, needed = f"stage {number} of a net", "(block, depth, width, stride), as in ('basic', 2, 64, 1)"
    if not isinstance(row, (tuple, list)) or len(row) != 4:
        raise InputError(where, found=repr(row), needed=needed)
    name, *numbers = row
    if name not in BLOCKS[order]:
        raise InputError(f"{where}, block", found=repr(name), needed=nearest(str(name), BLOCKS[order]))
    if not all(type(value) is int and value >= 1 for value in numbers):
        raise InputError(where, found=repr(row), needed=f"{needed}: whole numbers from 1 on")
    block = BLOCKS[order][name]
    return Stage(partial(block, **how), *numbers, expansion=EXPANSION[name])
