"""timm's nets of any kind as feature extractors: the maps of stride 4, 8, 16 and 32 that ``features_only`` gives.

Parameters keep the names that they have in timm's classifier, so its weights, and what the classification tool
publishes of it, load as they are. The layers behind the last map are left out.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from resdet.backbones.resnet import STRIDES
from resdet.backbones.trunk import FeatureExtractor
from resdet.errors import InputError


class LevelsTrunk(FeatureExtractor):
    """C2 .. C5 of a timm net.

    Args:
        net: of timm, with ``forward_intermediates``; it is taken over and loses the layers behind C5.
        where: for messages.

    Attributes:
        channels: of C2 .. C5.
        strides: 4, 8, 16 and 32.
        net: what was given.

    Raises:
        InputError: the net does not tell of four such maps, or takes images of one size only.
    """

    strides = STRIDES

    def __init__(self, net: nn.Module, *, where: str) -> None:
        super().__init__()
        levels = _levels(net, where)
        self.net = net
        self.indices = [number for number, _ in levels]
        self.channels = tuple(level["num_chs"] for _, level in levels)
        _drop_unused(self, where)
        self.check_declared(where)
        self.groups = _groups(net, [level["module"] for _, level in levels])

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> C2 .. C5; map i is (N, channels[i], ceil(H / strides[i]), ceil(W / strides[i]))."""
        return list(self.net.forward_intermediates(images, indices=self.indices, intermediates_only=True))


def class_layer(net: nn.Module, *, where: str) -> str:
    """Name of the layer with one output for each class.

    Raises:
        InputError: the net has two of them (distilled nets), or does not tell.
    """
    name = getattr(net, "pretrained_cfg", {}).get("classifier")
    if not isinstance(name, str):
        raise InputError(where, found=f"classifier {name!r}", needed="a net with one layer of classes")
    return name


def checkpoint_levels(net: nn.Module, *, where: str) -> None:
    """Let a net of timm keep less for the backward pass, in its own way.

    Raises:
        InputError: it has none.
    """
    try:
        net.set_grad_checkpointing(True)
    except (AttributeError, AssertionError) as error:
        found = f"{where}, for which timm has no checkpointing"
        raise InputError("model.checkpoint", found=found, needed="checkpoint=False") from error


def size_options(net: type[nn.Module]) -> dict[str, Any]:
    """What a class of timm's nets has to be told for images of any size."""
    return {"strict_img_size": False} if "strict_img_size" in inspect.signature(net).parameters else {}


def _levels(net: nn.Module, where: str) -> list[tuple[int, dict[str, Any]]]:
    """Place and facts of the last map at each stride."""
    information = getattr(net, "feature_info", [])
    told = list(getattr(information, "info", information))  # a list, or timm's class around it
    last = {level["reduction"]: (number, level) for number, level in enumerate(told)}
    if not last.keys() >= set(STRIDES):
        found = f"{type(net).__name__} with maps at stride {', '.join(map(str, sorted(last))) or 'unknown'}"
        needed = "a net with maps at strides 4, 8, 16 and 32 (timm's features_only), as ResNets, ConvNeXt, RegNet, Swin"
        raise InputError(where, found=found, needed=needed)
    return [last[stride] for stride in STRIDES]


def _drop_unused(trunk: LevelsTrunk, where: str) -> None:
    """Put the identity in place of modules that no map depends on, told by gradients on the meta device."""
    meta = {name: torch.empty_like(p, device="meta").requires_grad_() for name, p in trunk.named_parameters()}
    buffers = {name: torch.empty_like(b, device="meta") for name, b in trunk.named_buffers()}
    try:
        with torch.enable_grad():
            # Sides of no common size but the stride's: a net that takes one size only fails.
            maps = functional_call(trunk, meta | buffers, (torch.empty(2, 3, 64, 96, device="meta"),))
            torch.stack([m.sum() for m in maps]).sum().backward()
    except Exception as error:  # whatever the library's net says of such an image
        found = f"images of 64x96 fail: {str(error).partition(chr(10))[0]}"
        raise InputError(where, found=found, needed="a net that takes images of any size") from error
    used = {name for name, p in meta.items() if p.grad is not None}
    _drop(trunk.net, {name.removeprefix("net.") for name in used})


def _drop(module: nn.Module, used: set[str]) -> None:
    for name, child in module.named_children():
        inside = {parameter.removeprefix(f"{name}.") for parameter in used if parameter.startswith(f"{name}.")}
        if inside:
            _drop(child, inside)
        elif any(True for _ in child.parameters()):
            setattr(module, name, nn.Identity())


def _groups(net: nn.Module, ends: list[str]) -> tuple[tuple[str, ...], ...]:
    """Names of the modules before the one that makes C2 (the stem), of that one, then of those up to C3, C4 and C5."""
    inner = [f"net.{end}" for end in ends]
    parts = list(_parts(net, "net", inner))
    if not all(end in parts for end in inner):
        return ()  # HRNet's maps come from no module that it names: none can be frozen
    places = [parts.index(end) for end in inner]
    cuts = [0, places[0], *(place + 1 for place in places)]
    return tuple(tuple(parts[start:end]) for start, end in pairwise(cuts))


def _parts(module: nn.Module, name: str, ends: list[str]) -> Iterator[str]:
    """Names of the modules inside, in order; one that has an end further inside is told by its parts."""
    for child, inner in module.named_children():
        path = f"{name}.{child}"
        if any(end.startswith(f"{path}.") for end in ends):
            yield from _parts(inner, path, ends)
        else:
            yield path
