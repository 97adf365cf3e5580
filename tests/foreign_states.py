"""State dicts with the key names and shapes of detectron2, mmdetection, Caffe2 and Caffe, built from block counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
WIDTHS = (64, 128, 256, 512)
Shape = tuple[int, ...]
Make = Callable[[str, Shape], Tensor]


def hollow(name: str, shape: Shape) -> Tensor:
    """A tensor of any shape in four bytes."""
    return torch.ones(()).expand(shape)


class Random:
    """Seeded values that keep activations near one."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, name: str, shape: Shape) -> Tensor:
        if name.endswith("running_var"):
            return torch.empty(shape).uniform_(0.5, 1.5, generator=self.generator)
        if len(shape) == 1:
            low = 0.5 if "norm.weight" in name or ("bn" in name and name.endswith(("weight", "_s"))) else -0.3
            return torch.empty(shape).uniform_(low, low + 0.6, generator=self.generator)
        return torch.randn(shape, generator=self.generator) * (2 / torch.Size(shape[1:]).numel()) ** 0.5


def residual_convs(
    depths: Sequence[int], widths: Sequence[int], groups: tuple[int, int] = (1, 64)
) -> Iterator[tuple[int, int, str, Shape]]:
    """(stage 2..5, block, "1", "2", "3" or "shortcut", shape) of every convolution but the stem.

    ``groups``: their number, and the width of one where a block's is 64.
    """
    inputs = widths[0]
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=False), start=2):
        one = width * groups[1] // 64
        for block in range(depth):
            yield stage, block, "1", (one * groups[0], inputs, 1, 1)
            yield stage, block, "2", (one * groups[0], one, 3, 3)
            yield stage, block, "3", (4 * width, one * groups[0], 1, 1)
            if block == 0:
                yield stage, block, "shortcut", (4 * width, inputs, 1, 1)
            inputs = 4 * width


def norm(make: Make, prefix: str, channels: int, leaves: Sequence[str]) -> dict[str, Tensor]:
    return {f"{prefix}{leaf}": make(f"{prefix}{leaf}", (channels,)) for leaf in leaves}


BN = ("weight", "bias", "running_mean", "running_var")


def detectron2(
    pyramid: bool,
    *,
    depths: Sequence[int] = DEPTHS[50],
    widths: Sequence[int] = WIDTHS,
    groups: tuple[int, int] = (1, 64),
    classes: int = 80,
    agnostic: bool = False,
    per_cell: int | None = None,
    make: Make = hollow,
    pyramid_width: int = 256,
    head_width: int = 1024,
) -> dict[str, Tensor]:
    """GeneralizedRCNN's keys; the C4 head holds res5."""
    trunk = "backbone.bottom_up." if pyramid else "backbone."
    state = {}

    def add(name: str, *shape: int) -> None:
        state[name] = make(name, shape)

    def conv_norm(prefix: str, shape: Shape) -> None:
        add(f"{prefix}.weight", *shape)
        state.update(norm(make, f"{prefix}.norm.", shape[0], BN))

    def layer(prefix: str, *shape: int) -> None:
        add(f"{prefix}.weight", *shape)
        add(f"{prefix}.bias", shape[0])

    conv_norm(f"{trunk}stem.conv1", (widths[0], 3, 7, 7))
    for stage, block, place, shape in residual_convs(depths, widths, groups):
        where = trunk if pyramid or stage < 5 else "roi_heads."
        conv_norm(f"{where}res{stage}.{block}." + (place if place == "shortcut" else f"conv{place}"), shape)
    channels = pyramid_width if pyramid else 4 * widths[2]
    anchors = per_cell or (3 if pyramid else 15)
    layer("proposal_generator.rpn_head.conv", channels, channels, 3, 3)
    layer("proposal_generator.rpn_head.objectness_logits", anchors, channels, 1, 1)
    layer("proposal_generator.rpn_head.anchor_deltas", 4 * anchors, channels, 1, 1)
    vector = 4 * widths[3]
    if pyramid:
        for stage, width in enumerate(widths, start=2):
            layer(f"backbone.fpn_lateral{stage}", channels, 4 * width, 1, 1)
            layer(f"backbone.fpn_output{stage}", channels, channels, 3, 3)
        layer("roi_heads.box_head.fc1", head_width, channels * 49)
        layer("roi_heads.box_head.fc2", head_width, head_width)
        vector = head_width
    layer("roi_heads.box_predictor.cls_score", classes + 1, vector)
    layer("roi_heads.box_predictor.bbox_pred", 4 * (1 if agnostic else classes), vector)
    return state


def mmdetection(
    pyramid: bool,
    *,
    depths: Sequence[int] = DEPTHS[50],
    widths: Sequence[int] = WIDTHS,
    classes: int = 80,
    agnostic: bool = False,
    make: Make = hollow,
    pyramid_width: int = 256,
    head_width: int = 1024,
) -> dict[str, Tensor]:
    """Keys of mmdetection's TwoStageDetector, counters of BN included."""
    state = {}

    def add(name: str, *shape: int) -> None:
        state[name] = make(name, shape)

    def batchnorm(prefix: str, channels: int) -> None:
        state.update(norm(make, f"{prefix}.", channels, BN))
        state[f"{prefix}.num_batches_tracked"] = torch.tensor(7)

    def layer(prefix: str, *shape: int) -> None:
        add(f"{prefix}.weight", *shape)
        add(f"{prefix}.bias", shape[0])

    add("backbone.conv1.weight", widths[0], 3, 7, 7)
    batchnorm("backbone.bn1", widths[0])
    for stage, block, place, shape in residual_convs(depths, widths):
        where = "backbone" if pyramid or stage < 5 else "roi_head.shared_head"
        prefix = f"{where}.layer{stage - 1}.{block}."
        add(prefix + ("downsample.0" if place == "shortcut" else f"conv{place}") + ".weight", *shape)
        batchnorm(prefix + ("downsample.1" if place == "shortcut" else f"bn{place}"), shape[0])
    channels = pyramid_width if pyramid else 4 * widths[2]
    anchors = 3 if pyramid else 15
    layer("rpn_head.rpn_conv", channels, channels, 3, 3)
    layer("rpn_head.rpn_cls", anchors, channels, 1, 1)
    layer("rpn_head.rpn_reg", 4 * anchors, channels, 1, 1)
    vector = 4 * widths[3]
    if pyramid:
        for place, width in enumerate(widths):
            layer(f"neck.lateral_convs.{place}.conv", channels, 4 * width, 1, 1)
            layer(f"neck.fpn_convs.{place}.conv", channels, channels, 3, 3)
        layer("roi_head.bbox_head.shared_fcs.0", head_width, channels * 49)
        layer("roi_head.bbox_head.shared_fcs.1", head_width, head_width)
        vector = head_width
    layer("roi_head.bbox_head.fc_cls", classes + 1, vector)
    layer("roi_head.bbox_head.fc_reg", 4 * (1 if agnostic else classes), vector)
    return state


def caffe2(
    *,
    depths: Sequence[int] = DEPTHS[50],
    widths: Sequence[int] = WIDTHS,
    groups: tuple[int, int] = (1, 64),
    classes: int = 1000,
    make: Make = hollow,
) -> dict[str, Tensor]:
    """An ImageNet net of Detectron: BN folded to scale (``_s``) and shift (``_b``), and conv1's idle bias."""
    state = {"conv1_w": make("conv1_w", (widths[0], 3, 7, 7)), "conv1_b": make("conv1_b", (widths[0],))}
    state |= norm(make, "res_conv1_bn_", widths[0], ("s", "b"))
    for stage, block, place, shape in residual_convs(depths, widths, groups):
        branch = "1" if place == "shortcut" else "2" + "abc"[int(place) - 1]
        prefix = f"res{stage}_{block}_branch{branch}_"
        state[f"{prefix}w"] = make(f"{prefix}w", shape)
        state |= norm(make, f"{prefix}bn_", shape[0], ("s", "b"))
    state["fc1000_w"] = make("fc1000_w", (classes, 4 * widths[3]))
    state["fc1000_b"] = make("fc1000_b", (classes,))
    return state


def caffe(
    *, depths: Sequence[int] = DEPTHS[50], widths: Sequence[int] = WIDTHS, classes: int = 1000, make: Make = hollow
) -> dict[str, Tensor]:
    """An ImageNet net in Caffe's layer names: blocks a, b, c, or a, b1, b2, ... in stages of more than six."""
    state = {"conv1.weight": make("conv1.weight", (widths[0], 3, 7, 7))}

    def batchnorm(name: str, channels: int) -> None:
        state.update(norm(make, f"bn{name}.", channels, ("running_mean", "running_var")))
        state.update(norm(make, f"scale{name}.", channels, ("weight", "bias")))

    batchnorm("_conv1", widths[0])
    for stage, block, place, shape in residual_convs(depths, widths):
        lettered = depths[stage - 2] <= 6 or block == 0
        letters = "abcdef"[block] if lettered else f"b{block}"
        branch = "1" if place == "shortcut" else "2" + "abc"[int(place) - 1]
        name = f"{stage}{letters}_branch{branch}"
        state[f"res{name}.weight"] = make(f"res{name}.weight", shape)
        batchnorm(name, shape[0])
    state["fc1000.weight"] = make("fc1000.weight", (classes, 4 * widths[3]))
    state["fc1000.bias"] = make("fc1000.bias", (classes,))
    return state
