"""ImageNet backbones in the names of Caffe and of Caffe2 (Detectron), and in torchvision's, for our ResNets.

The authors' own models ("MSRA") reached everybody through these: BGR pixels less the channel means, not divided by a
deviation, and the stride on the first 1x1 convolution. In Caffe2's form BN is folded to scale and shift.
"""

from __future__ import annotations

import re
from typing import Any

from resdet.convert.renaming import (
    NORM,
    SWITCHES,
    TRUNK,
    Channels,
    Converted,
    Foreign,
    Renames,
    StrideOn,
    backbone_name,
    fold_batchnorm,
    fold_pixels,
    is_grouped,
    rename,
    usual_pixels,
)
from resdet.errors import InputError

_LEAVES = {
    **{"w": "weight", "b": "bias", "bn_s": "weight", "bn_b": "bias"},
    **{"bn_gamma": "weight", "bn_beta": "bias", "bn_rm": "running_mean", "bn_riv": "running_var"},
}
CAFFE2: Renames = (
    (r"conv1_w", "conv1.weight"),
    (r"conv1_b", "conv1.bias"),
    (r"(?:fc1000|pred)_w", "fc.weight"),
    (r"(?:fc1000|pred)_b", "fc.bias"),
    (r".+_momentum", None),
    *((rf"res_conv1_{leaf}", f"bn1.{ours}") for leaf, ours in _LEAVES.items() if leaf.startswith("bn")),
    *(
        (rf"res{stage}_(\d+)_branch{branch}_{leaf}", rf"layer{stage - 1}.\1.{place}.{ours}")
        for stage in (2, 3, 4, 5)
        for branch, conv, bn in (
            ("1", "downsample.0", "downsample.1"),
            *((f"2{letter}", f"conv{n}", f"bn{n}") for n, letter in enumerate("abc", start=1)),
        )
        for leaf, ours in _LEAVES.items()
        for place in [bn if leaf.startswith("bn") else conv]
    ),
)

_BLOCK = r"([a-z]\d*)"
CAFFE: Renames = (
    (r"conv1\.(weight|bias)", r"conv1.\1"),
    (rf"(?:bn|scale)_conv1\.{NORM}", r"bn1.\1"),
    (r"fc1000\.(weight|bias)", r"fc.\1"),
    *(
        (rf"{layer}{stage}{_BLOCK}_branch{branch}\.{leaf}", rf"layer{stage - 1}.\1.{place}.\2")
        for stage in (2, 3, 4, 5)
        for branch, conv, bn in (
            ("1", "downsample.0", "downsample.1"),
            *((f"2{letter}", f"conv{n}", f"bn{n}") for n, letter in enumerate("abc", start=1)),
        )
        for layer, leaf, place in (("res", r"(weight|bias)", conv), ("(?:bn|scale)", NORM, bn))
    ),
)
"""Blocks keep Caffe's names here: a, b, c, ... in short stages; a, b1, b2, ... in long ones."""
TORCHVISION: Renames = ((TRUNK, r"\1"), (r"(fc\.(?:weight|bias))", r"\1"))


def from_caffe2(foreign: Foreign) -> Converted:
    """An ImageNet net of Detectron's model zoo (``conv1_w``, ``res2_0_branch2a_w``, ``res2_0_branch2a_bn_s`` ...)."""
    return _backbone(foreign, CAFFE2, "ImageNet ResNet in Caffe2's names", usual=("bgr", "1x1"))


def from_caffe(foreign: Foreign) -> Converted:
    """An ImageNet net in Caffe's names (``res2a_branch2a.weight``, ``bn2a_branch2a.running_mean`` ...)."""
    return _backbone(foreign, CAFFE, "ImageNet ResNet in Caffe's names", usual=("bgr", "1x1"))


def from_resnet(foreign: Foreign) -> Converted:
    """A net in torchvision's names, whose pixel format and stride the user must tell.

    Raises:
        InputError: neither is said.
    """
    return _backbone(foreign, TORCHVISION, "ImageNet ResNet in torchvision's names", usual=(None, None))


def _backbone(
    foreign: Foreign, renames: Renames, kind: str, *, usual: tuple[Channels | None, StrideOn | None]
) -> Converted:
    state = {_numbered(key): value for key, value in rename(foreign, renames, kind=kind).items()}
    said = foreign.agree(None, "3x3" if is_grouped(state) else None)
    channels, stride_on = said[0] or usual[0], said[1] or usual[1]
    if not channels or not stride_on:
        found = "a ResNet whose pixel format and stride no key tells"
        raise InputError(foreign.source, found=found, needed=SWITCHES)
    state = fold_batchnorm(state, *([] if foreign.batchnorm_eps is None else [foreign.batchnorm_eps]))
    bgr = channels == "bgr"
    mean, std = usual_pixels(channels, stride_on)
    if "conv1.weight" in state:
        state["conv1.weight"] = fold_pixels(state["conv1.weight"], mean=mean, std=std, bgr=bgr, source=foreign.source)
    arguments: dict[str, Any] = {"backbone": backbone_name(state, stride_on=stride_on, source=foreign.source)}
    if "fc.weight" in state:
        arguments["num_classes"] = len(state["fc.weight"])
    notes = [
        f"{channels.upper()} pixels over {', '.join(f'{v:g}' for v in std)}, less ImageNet's means: folded into conv1",
        f"stride on the {stride_on} convolution",
        *([] if "fc.weight" in state else ["no classifier in the file: for detectors only"]),
    ]
    return Converted(kind, None, arguments, state, notes)


def _numbered(key: str) -> str:
    """``layer1.b.conv1`` and ``layer3.b22.conv1`` as block 1 and 22."""

    def number(match: re.Match) -> str:
        letter, count = match.groups()
        return f".{int(count) if count else ord(letter) - ord('a')}."

    return re.sub(r"\.([a-z])(\d*)\.", number, key, count=1)
