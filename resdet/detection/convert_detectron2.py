"""Faster R-CNN files of detectron2: its model zoo's (``.pkl``) and those its trainer writes (``.pth``).

Its conventions, where they differ from ours: BGR pixels, not divided by a deviation, with MSRA's weights, which stride
on the first 1x1; anchors not rounded, the size outermost inside a cell; RoIAlign with as many samples as a bin is wide;
Pillow's resizing. Background is last and has no box, as here. A file does not hold its config: what only that says
(score thresholds, input sizes) is the model zoo's, and options of ours override it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from resdet.detection.convert_state import (
    LEAF,
    SETTINGS,
    Converted,
    Foreign,
    Renames,
    Style,
    backbone_name,
    fold_batchnorm,
    fold_pixels,
    rename,
    size_arguments,
    split_backbone,
)
from resdet.detection.preprocess import RGB_MEAN, RGB_STD
from resdet.errors import InputError

NORM = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
CELL_ANCHORS = "proposal_generator.anchor_generator.cell_anchors."


def _trunk(theirs: str, stages: Mapping[str, str]) -> Renames:
    """Renames of a stem and of residual stages, ``{"res2": "backbone.layer1"}``."""
    rows = [
        (rf"{theirs}stem\.conv1\.weight", r"backbone.conv1.weight"),
        (rf"{theirs}stem\.conv1\.norm\.{NORM}", r"backbone.bn1.\1"),
    ]
    for stage, ours in stages.items():
        rows += [
            (rf"{stage}\.(\d+)\.conv(\d)\.weight", rf"{ours}.\1.conv\2.weight"),
            (rf"{stage}\.(\d+)\.conv(\d)\.norm\.{NORM}", rf"{ours}.\1.bn\2.\3"),
            (rf"{stage}\.(\d+)\.shortcut\.weight", rf"{ours}.\1.downsample.0.weight"),
            (rf"{stage}\.(\d+)\.shortcut\.norm\.{NORM}", rf"{ours}.\1.downsample.1.\2"),
        ]
    return rows


CONV5 = "roi_head.embedding.conv5."
COMMON: Renames = (
    (r"pixel_(?:mean|std)", None),
    (rf"{CELL_ANCHORS}\d+".replace(".", r"\."), None),
    (rf"proposal_generator\.rpn_head\.conv\.{LEAF}", r"rpn.head.conv.\1"),
    (rf"proposal_generator\.rpn_head\.objectness_logits\.{LEAF}", r"rpn.head.objectness.\1"),
    (rf"proposal_generator\.rpn_head\.anchor_deltas\.{LEAF}", r"rpn.head.deltas.\1"),
    (rf"roi_heads\.box_predictor\.cls_score\.{LEAF}", r"roi_head.class_logits.\1"),
    (rf"roi_heads\.box_predictor\.bbox_pred\.{LEAF}", r"roi_head.box_deltas.\1"),
)
C4: Renames = (
    *COMMON,
    *_trunk(
        r"backbone\.",
        {
            **{rf"backbone\.res{n}": f"backbone.layer{n - 1}" for n in (2, 3, 4)},
            r"roi_heads\.res5": CONV5.rstrip("."),
        },
    ),
)
PYRAMID: Renames = (
    *COMMON,
    *_trunk(
        r"backbone\.bottom_up\.", {rf"backbone\.bottom_up\.res{n}": f"backbone.layer{n - 1}" for n in (2, 3, 4, 5)}
    ),
    *((rf"backbone\.fpn_lateral{n}\.{LEAF}", rf"neck.lateral.{n - 2}.\1") for n in (2, 3, 4, 5)),
    *((rf"backbone\.fpn_output{n}\.{LEAF}", rf"neck.output.{n - 2}.\1") for n in (2, 3, 4, 5)),
    *((rf"roi_heads\.box_head\.fc{n}\.{LEAF}", rf"roi_head.embedding.fc{n + 5}.\1") for n in (1, 2)),
)

SIZES = (32.0, 64.0, 128.0, 256.0, 512.0)
"""Sides of its default anchors, one for each level of a pyramid, all on the one level of C4."""
RATIOS = (0.5, 1.0, 2.0)


def from_detectron2(foreign: Foreign) -> Converted:
    """Faster R-CNN of detectron2, C4 or FPN.

    Raises:
        InputError: a key has no place; its anchors or pixel means have no like here; the stride cannot be known.
    """
    pyramid = any(key.startswith("backbone.bottom_up.") for key in foreign.state)
    kind = f"detectron2 Faster R-CNN {'FPN' if pyramid else 'C4'}"
    state = rename(foreign, PYRAMID if pyramid else C4, kind=kind)
    shapes = size_arguments(state, pyramid=pyramid, source=foreign.source)
    sizes = _anchor_sizes(foreign, len(state["rpn.head.objectness.bias"]), pyramid)
    state = fold_batchnorm(state, *([] if foreign.batchnorm_eps is None else [foreign.batchnorm_eps]))
    if not pyramid:
        for layer in ("objectness", "deltas"):
            for leaf in ("weight", "bias"):
                key = f"rpn.head.{layer}.{leaf}"
                state[key] = ratios_outermost(state[key], len(sizes))
    mean, std, bgr, style = _pixels(foreign)
    conv1 = "backbone.conv1.weight"
    state[conv1] = fold_pixels(state[conv1], mean=mean, std=std, bgr=bgr, source=foreign.source)
    trunk = split_backbone(state, conv5=None if pyramid else CONV5)
    arguments = {
        **SETTINGS,
        **shapes,
        "backbone": backbone_name(trunk, style=style, source=foreign.source),
        "antialias": True,
        "anchor_sizes": sizes,
        "rounded_anchors": False,
        "half_pixel": True,
        "align_samples": 0,
    }
    if pyramid:
        arguments |= {"box_beta": 0.0, "train_proposals": (2000, 1000), "test_proposals": (1000, 1000)}
    else:
        arguments |= {"pooling": "align", "train_proposals": (12000, 2000), "test_proposals": (6000, 1000)}
    notes = [
        f"{'BGR' if bgr else 'RGB'} pixels over {_listed(std)}: folded into conv1",
        f"stride on the {'first 1x1' if style == 'caffe' else '3x3'} convolution",
        f"anchors {_listed(sizes)}, not rounded" + ("" if pyramid else "; reordered, ratios outermost"),
        "RoIAlign: half-pixel centres, as many samples as a bin is wide; input resized with antialiasing",
        "input sizes, thresholds and proposal counts: the model zoo's (the file does not tell)",
    ]
    return Converted(kind, "faster_rcnn_fpn" if pyramid else "faster_rcnn_c4", arguments, state, notes)


def ratios_outermost(rows: Tensor, sizes: int) -> Tensor:
    """Output channels (S * R * c, ...) of an RPN layer, sizes outermost, as (R * S * c, ...), ratios outermost."""
    split = rows.unflatten(0, (sizes, len(RATIOS), -1))
    return split.transpose(0, 1).flatten(0, 2).contiguous()


def cell_anchors(sizes: Sequence[float]) -> Tensor:
    """(S * R, 4) anchors of a cell around the origin in detectron2's order."""
    rows = []
    for size in sizes:
        for ratio in RATIOS:
            half_w, half_h = size / math.sqrt(ratio) / 2, size * math.sqrt(ratio) / 2
            rows.append([-half_w, -half_h, half_w, half_h])
    return torch.tensor(rows)


def _anchor_sizes(foreign: Foreign, per_cell: int, pyramid: bool) -> list[float]:
    """Sides of the anchors: of the file's buffers, or the default ones if their number is right."""
    where = f"{foreign.source}: anchors"
    levels = sorted((k for k in foreign.state if k.startswith(CELL_ANCHORS)), key=lambda k: int(k.rpartition(".")[2]))
    if not levels:
        if per_cell != (3 if pyramid else 15):
            needed = "the file's anchor_generator.cell_anchors, to know their sizes"
            raise InputError(where, found=f"{per_cell} in a cell, which are not the default ones", needed=needed)
        return list(SIZES)
    groups = [foreign.state[key].float() for key in levels]
    if any(group.dim() != 2 or group.shape[1] != 4 for group in groups):
        raise InputError(where, found=f"shapes {[list(g.shape) for g in groups]}", needed="(anchors, 4) for each level")
    found = [(g[::3, 2:] - g[::3, :2]).prod(1).sqrt() for g in groups]
    # Sides come back from areas with float32's error; 0.01 pixel is far less than any difference that is meant.
    sizes = [[round(float(side), 2) for side in level] for level in found]
    like = all(
        len(group) == 3 * len(level) and torch.allclose(group, cell_anchors(level), atol=0.02)
        for group, level in zip(groups, sizes, strict=True)
    )
    one_each = len(sizes) == len(SIZES) and all(len(level) == 1 for level in sizes)
    if not like or not (one_each if pyramid else len(sizes) == 1 and per_cell == 3 * len(sizes[0])):
        needed = f"ratios {RATIOS} around the origin; " + ("one size for each of 5 levels" if pyramid else "one level")
        raise InputError(where, found=f"{len(groups)} levels of {[len(g) for g in groups]}", needed=needed)
    return [side for level in sizes for side in level]


def _pixels(foreign: Foreign) -> tuple[Sequence[float], Sequence[float], bool, Style]:
    """Mean and deviation in their order, whether that is BGR, and the style of the stride."""
    bgr_mean = RGB_MEAN[::-1]
    if "pixel_mean" not in foreign.state:  # files of today lack it; the model zoo's nets are all of one kind
        if foreign.style == "pytorch":
            return RGB_MEAN, RGB_STD, False, "pytorch"
        return bgr_mean, (1.0, 1.0, 1.0), True, "caffe"
    mean = foreign.state["pixel_mean"].float().flatten()
    std = foreign.state.get("pixel_std", torch.ones(3)).float().flatten()
    bgr = bool((mean - torch.tensor(bgr_mean)).abs().sum() <= (mean - torch.tensor(RGB_MEAN)).abs().sum())
    style: Style = foreign.style or "caffe"
    if foreign.style is None and not torch.equal(std, torch.ones(3)):
        needed = "--style pytorch (stride on the 3x3, as torchvision's weights) or --style caffe (on the first 1x1)"
        raise InputError(foreign.source, found=f"a pixel_std of {_listed(std)}: weights not of MSRA", needed=needed)
    return mean.tolist(), std.tolist(), bgr, style


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{float(value):g}" for value in values)
