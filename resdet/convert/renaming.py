"""What converters of foreign state dicts share: renaming, and repairs of what a name cannot say.

All repairs are exact: the converted net computes the source's function up to rounding.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from resdet.backbones.registry import BACKBONES, Builder
from resdet.detection.preprocess import RGB_MEAN, RGB_STD
from resdet.errors import InputError, listed

Style = Literal["caffe", "pytorch"]
"""mmdetection's words. ``caffe``: BGR pixels, not divided by a deviation, and bottlenecks that stride on the first 1x1
convolution, as the paper's own nets; ``pytorch``: RGB, divided, stride on the 3x3."""
Channels = Literal["bgr", "rgb"]
StrideOn = Literal["1x1", "3x3"]
STYLES: dict[Style | None, tuple[Channels | None, StrideOn | None]] = {
    **{"caffe": ("bgr", "1x1"), "pytorch": ("rgb", "3x3"), None: (None, None)}
}
SWITCHES = (
    "--channels bgr --stride-on 1x1 (short: --style caffe; the paper's own weights), or --channels rgb --stride-on 3x3 "
    "(--style pytorch; torchvision's)"
)
"""For messages."""

TRUNKS = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
)
"""Nets that others have, too; a ResNet that has bottlenecks has a twin ``-1x1`` for the other stride."""

Renames = Sequence[tuple[str, str | None]]
"""(pattern of a whole key of theirs, our name), tried in order; ``\\1`` is the pattern's first group; None: needs no
place (a constant that is checked elsewhere, a counter)."""

LEAF = r"(weight|bias)"
NORM = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
BLOCK = r"(\d+\.(?:(?:conv|bn)\d|downsample\.[01])\.\w+)"
"""Key of a residual block in torchvision's, timm's, mmdetection's and our names."""
TRUNK = r"((?:conv1|bn1|layer[1-4]\.\d+\.(?:(?:conv|bn)\d|downsample\.[01]))\.\w+)"
"""Key of a trunk in the same names."""
EPSILON = 1e-5
"""Of our BN layers, and of nearly everybody's."""
FROZEN_VARIANCE = 1 - EPSILON
"""With it, and a mean of 0, BN is its scale and shift alone."""
MEAN_TOLERANCE = 0.01
"""Of 255; means are written with three digits or in float32."""

SETTINGS: dict[str, Any] = {
    **{"shorter_side": 800, "longer_side": 1333, "rois_per_image": 512},
    **{"score_threshold": 0.05, "nms_iou": 0.5, "max_per_image": 100},
}
"""Where the defaults of torchvision, detectron2 and mmdetection agree."""


class Foreign(NamedTuple):
    """A file from elsewhere, as read."""

    source: str
    """For messages."""
    state: Mapping[str, Tensor]
    meta: Mapping[str, Any] = {}
    """What a training script told beside the weights."""
    digest: str = ""
    """First 8 hexadecimal digits of the file's SHA-256."""
    style: Style | None = None
    """Said by the user, for files that do not."""
    batchnorm_eps: float | None = None
    """Said by the user, where it is not the usual one."""
    class_count: int | None = None
    """Number of class names that the user gave."""
    channels: Channels | None = None
    """Said by the user, as the next: instead of ``style``, or where a net has one half of each."""
    stride_on: StrideOn | None = None
    """The bottleneck's convolution that has the stride."""
    config: str | None = None
    """Text of the source's own config, given by the user."""

    def agree(self, channels: Channels | None, stride_on: StrideOn | None) -> tuple[Channels | None, StrideOn | None]:
        """Channels and stride, each as the file tells it or the user says it, or None where neither does.

        Args:
            channels: told by the file or its config.
            stride_on: likewise.

        Raises:
            InputError: the file tells another one than the user says.
        """
        by_style = STYLES[self.style]
        said = (self.channels or by_style[0], self.stride_on or by_style[1])
        for name, told, other in zip(("--channels", "--stride-on"), (channels, stride_on), said, strict=True):
            if told and other and told != other:
                found = f"{name} {other}, or a --style that means it, where the file or its config tells {told}"
                raise InputError(self.source, found=found, needed=f"{name} {told}, or none")
        return channels or said[0], stride_on or said[1]


class Converted(NamedTuple):
    """The same net in our terms."""

    kind: str
    builder: str | None
    """``faster_rcnn_fpn`` or ``faster_rcnn_c4``; None for a backbone."""
    arguments: dict[str, Any]
    """Of the builder; of a backbone its name and number of classes."""
    state: dict[str, Tensor]
    notes: list[str]
    """The conventions taken over, one a line."""
    classes: tuple[str, ...] | None = None
    """Class names, where the file tells them."""


def rename(foreign: Foreign, renames: Renames, *, kind: str) -> dict[str, Tensor]:
    """The state in our names.

    Raises:
        InputError: lists the keys that have no place in our net.
    """
    state, unknown = {}, []
    for key, value in foreign.state.items():
        matches = ((re.fullmatch(theirs, key), ours) for theirs, ours in renames)
        match, ours = next(((match, ours) for match, ours in matches if match), (None, None))
        name = match.expand(ours) if match and ours else None
        if match is None or name in state:  # of two keys for one place, one would be lost
            unknown.append(key)
        elif name:
            state[name] = value.float() if value.is_floating_point() else value
    if unknown:
        found = f"{len(unknown)} keys of {kind} without a place in our net: {summary(unknown)}"
        raise InputError(
            foreign.source, found=found, needed="a Faster R-CNN (C4 or FPN) or a ResNet, nothing beside it"
        )
    return state


def summary(keys: Sequence[str], shown: int = 20) -> str:
    """Keys, those that differ in numbers alone as one: ``head.*.weight (4)``."""
    counts = Counter(re.sub(r"\d+", "*", key) for key in keys)
    single = {re.sub(r"\d+", "*", key): key for key in keys}
    texts = [single[pattern] if n == 1 else f"{pattern} ({n})" for pattern, n in counts.items()]
    return listed(texts, shown=shown)


def fold_pixels(conv1: Tensor, *, mean: Sequence[float], std: Sequence[float], bgr: bool, source: str) -> Tensor:
    """The first convolution for RGB pixels less :data:`RGB_MEAN`, over :data:`RGB_STD`.

    Theirs sees ``(p - mean) / std``; one of ours is that times ``std / RGB_STD``. Both pad with zeros after
    normalising, so the factor goes into the weights without a remainder; a difference of the means would not, as it
    would be missing in the padding.

    Args:
        conv1: (C, 3, 7, 7), input channels in their order.
        mean: in the same order, on the 0-255 scale.
        std: likewise.
        bgr: whether that order is blue, green, red.
        source: for messages.

    Raises:
        InputError: their means are not ours, or it is no stem for three channels.
    """
    if conv1.dim() != 4 or conv1.shape[1] != 3:
        raise InputError(source, found=f"a first convolution of shape {list(conv1.shape)}", needed="(C, 3, 7, 7)")
    order = [2, 1, 0] if bgr else [0, 1, 2]
    theirs = torch.as_tensor(mean, dtype=torch.float32).flatten()[order]
    if (theirs - torch.tensor(RGB_MEAN)).abs().max() > MEAN_TOLERANCE:
        needed = f"RGB {RGB_MEAN}: another mean cannot be carried into the weights"
        raise InputError(source, found=f"pixel means RGB {[round(v, 3) for v in theirs.tolist()]}", needed=needed)
    factor = torch.tensor(RGB_STD) / torch.as_tensor(std, dtype=torch.float32).flatten()[order]
    return conv1[:, order] * factor.view(3, 1, 1)


def fold_batchnorm(state: Mapping[str, Tensor], eps: float = EPSILON) -> dict[str, Tensor]:
    """The state for BN layers with our epsilon, whole.

    A layer of scale and shift alone gets a mean of 0 and a variance of ``1 - EPSILON``. With another epsilon, the scale
    takes the factor ``sqrt((variance + EPSILON) / (variance + eps))``. The bias of a convolution before BN, which
    Caffe's files may hold, is taken from the mean.
    """
    ours = dict(state)
    behind = r"(^|\.)(bn\d|(downsample|lateral\.\d|output\.\d|convs\.\d+)\.1)\.weight$"  # BN behind a convolution
    for key in [k for k in state if re.search(behind, k)]:
        layer, scale = key.removesuffix("weight"), state[key]
        mean = ours.setdefault(f"{layer}running_mean", torch.zeros_like(scale))
        variance = ours.setdefault(f"{layer}running_var", torch.full_like(scale, FROZEN_VARIANCE))
        if eps != EPSILON:
            ours[key] = scale * ((variance + EPSILON) / (variance + eps)).sqrt()
        bias = ours.pop(re.sub(r"\.1\.$", ".0.", re.sub(r"bn(\d)\.$", r"conv\1.", layer)) + "bias", None)
        if bias is not None:
            ours[f"{layer}running_mean"] = mean - bias
    return ours


def backbone_name(state: Mapping[str, Tensor], *, stride_on: StrideOn, source: str) -> str:
    """The registered net whose convolutions are those of a state, by their names and shapes.

    Args:
        state: keys as ``layer1.0.conv1.weight``, without a prefix.
        stride_on: where its bottlenecks stride.
        source: for messages.

    Raises:
        InputError: there is none, or none with that stride.
    """
    convs = {k: v.shape for k, v in state.items() if v.dim() == 4}
    for name in TRUNKS:
        if _conv_shapes(BACKBONES[name].builder) == convs:
            if stride_on == "1x1" and is_grouped(state):
                raise InputError(source, found=f"{name} with its stride on the first 1x1", needed="--stride-on 3x3")
            caffe = f"{name}-1x1"
            return caffe if stride_on == "1x1" and caffe in BACKBONES else name  # basic blocks stride in one way only
    counts = [sum(bool(re.fullmatch(rf"layer{n}\.\d+\.conv1\.weight", k)) for k in convs) for n in range(1, 5)]
    stem = list(convs.get("conv1.weight", ()))
    found = f"a trunk of {'+'.join(map(str, counts))} blocks, conv1 {stem}, that is none of our backbones"
    raise InputError(source, found=found, needed=f"the convolutions of {', '.join(TRUNKS)}")


def is_grouped(state: Mapping[str, Tensor]) -> bool:
    """Whether the trunk, in our names without a prefix, is a ResNeXt: its authors' nets all stride on the 3x3."""
    conv2 = state.get("layer1.0.conv2.weight", torch.empty(0))
    return conv2.dim() == 4 and conv2.shape[1] < conv2.shape[0]


@cache
def _conv_shapes(builder: Builder) -> dict[str, torch.Size]:
    with torch.device("meta"):  # shapes without weights
        return {k: v.shape for k, v in builder(1).state_dict().items() if v.dim() == 4}


def size_arguments(state: Mapping[str, Tensor], *, pyramid: bool, source: str) -> dict[str, Any]:
    """The builder's arguments that the shapes of a detector in our names tell, background last.

    Raises:
        InputError: an output layer is missing, or two do not fit each other.
    """
    layers = ["rpn.head.objectness", "rpn.head.deltas", "roi_head.class_logits", "roi_head.box_deltas"]
    needed = [f"{layer}.{leaf}" for layer in layers for leaf in ("weight", "bias")] + ["backbone.conv1.weight"]
    needed += ["rpn.head.conv.bias", "roi_head.embedding.fc6.bias"] if pyramid else []
    missing = [key for key in needed if key not in state or state[key].dim() == 0]
    if missing:
        raise InputError(source, found=f"nothing for {', '.join(missing)} of our net", needed="a whole detector")
    objectness, proposals, logits, deltas = (len(state[f"{layer}.weight"]) for layer in layers)
    count = logits - 1
    if count < 1 or deltas not in (4, 4 * count) or proposals != 4 * objectness:
        found = f"{logits} class scores, {deltas} box deltas, {objectness} anchor scores, {proposals} anchor deltas"
        raise InputError(source, found=found, needed="K + 1, 4 K or 4 (background last, without a box), A and 4 A")
    arguments = {"num_classes": count, "class_agnostic": deltas == 4 and count > 1}
    if pyramid:
        arguments["pyramid_channels"] = len(state["rpn.head.conv.bias"])
        arguments["head_width"] = len(state["roi_head.embedding.fc6.bias"])
    return arguments


def usual_pixels(channels: Channels, stride_on: StrideOn) -> tuple[Sequence[float], Sequence[float]]:
    """ImageNet's mean and deviation in the order of the channels, or deviations of 1.

    The paper's own weights, which see BGR and stride on the first 1x1, have the deviation in their first convolution;
    no others have.
    """
    order = -1 if channels == "bgr" else 1
    if (channels, stride_on) == STYLES["caffe"]:
        return RGB_MEAN[::order], (1.0, 1.0, 1.0)
    return RGB_MEAN[::order], RGB_STD[::order]


def align_note(arguments: Mapping[str, Any]) -> str:
    """How a detector pools its regions, in words."""
    centres = "half-pixel centres" if arguments["half_pixel"] else "no half-pixel centres"
    samples = arguments["align_samples"]
    return f"RoIAlign: {centres}, " + (
        f"{samples}x{samples} samples" if samples else "as many samples as a bin is wide"
    )


def check_finite(state: Mapping[str, Tensor], *, source: str) -> None:
    """Refuse weights that are not numbers.

    Raises:
        InputError: names them.
    """
    bad = [key for key, value in state.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if bad:
        raise InputError(source, found=f"weights that are not finite: {summary(bad)}", needed="finite weights")


def split_backbone(state: Mapping[str, Tensor], *, conv5: str | None = None) -> dict[str, Tensor]:
    """The backbone's part of a detector's state, under its own names; ``conv5`` is the prefix of a C4 head's blocks."""
    own = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    if conv5:
        own |= {f"layer4.{k.removeprefix(conv5)}": v for k, v in state.items() if k.startswith(conv5)}
    return own
