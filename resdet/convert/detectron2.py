"""Faster R-CNN files of detectron2: its model zoo's (``.pkl``) and those its trainer writes (``.pth``).

Its conventions, where they differ from ours: BGR pixels, not divided by a deviation, with MSRA's weights, which stride
on the first 1x1; anchors not rounded, the size outermost inside a cell; RoIAlign with as many samples as a bin is wide;
Pillow's resizing to sides of its own rounding. Background is last and has no box, as here.

A file does not hold its config. What only that says (pixels and stride of today's files, input sizes, thresholds) is
read from the YAML that the user gives (``--config``), else said by switches, else assumed to be the model zoo's, and
the notes tell which.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from resdet.convert.renaming import (
    LEAF,
    MEAN_TOLERANCE,
    NORM,
    SETTINGS,
    Channels,
    Converted,
    Foreign,
    Renames,
    StrideOn,
    align_note,
    backbone_name,
    fold_batchnorm,
    fold_pixels,
    is_grouped,
    rename,
    size_arguments,
    split_backbone,
    usual_pixels,
)
from resdet.convert.settings import are_numbers, check_among, check_fixed, read_yaml, setting
from resdet.detection.preprocess import RGB_MEAN
from resdet.errors import InputError

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
FIXED = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.RESNETS.RES5_DILATION": 1,
    "MODEL.FPN.FUSE_TYPE": "sum",
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [list(RATIOS)],
    "MODEL.ANCHOR_GENERATOR.OFFSET": 0.0,
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": 0,
    "MODEL.RPN.NMS_THRESH": 0.7,
    "MODEL.RPN.BBOX_REG_WEIGHTS": [1.0, 1.0, 1.0, 1.0],
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": [10.0, 10.0, 5.0, 5.0],
}
"""Settings that have one value in our nets, detectron2's default."""
POOLERS = {"ROIAlignV2": True, "ROIAlign": False}
"""Its names of RoIAlign with half-pixel centres and without."""


def from_detectron2(foreign: Foreign) -> Converted:
    """Faster R-CNN of detectron2, C4 or FPN.

    Raises:
        InputError: a key has no place; its anchors or pixel means have no like here; the stride cannot be known.
    """
    pyramid = any(key.startswith("backbone.bottom_up.") for key in foreign.state)
    kind = f"detectron2 Faster R-CNN {'FPN' if pyramid else 'C4'}"
    state = rename(foreign, PYRAMID if pyramid else C4, kind=kind)
    shapes = size_arguments(state, pyramid=pyramid, source=foreign.source)
    config = {} if foreign.config is None else read_yaml(foreign.config)
    fixed = {"MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7 if pyramid else 14}
    fixed["MODEL.ROI_HEADS.NUM_CLASSES"] = shapes["num_classes"]
    check_fixed(config, FIXED | fixed, source=foreign.source)
    sizes = _anchor_sizes(foreign, config, len(state["rpn.head.objectness.bias"]), pyramid)
    state = fold_batchnorm(state, *([] if foreign.batchnorm_eps is None else [foreign.batchnorm_eps]))
    if not pyramid:
        for layer in ("objectness", "deltas"):
            for leaf in ("weight", "bias"):
                key = f"rpn.head.{layer}.{leaf}"
                state[key] = ratios_outermost(state[key], len(sizes))
    trunk = split_backbone(state, conv5=None if pyramid else CONV5)
    mean, std, channels, stride_on, notes = _pixels(foreign, config, grouped=is_grouped(trunk))
    conv1 = "backbone.conv1.weight"
    state[conv1] = fold_pixels(state[conv1], mean=mean, std=std, bgr=channels == "bgr", source=foreign.source)
    arguments = {
        **SETTINGS,
        **shapes,
        "backbone": backbone_name(trunk, stride_on=stride_on, source=foreign.source),
        "antialias": True,
        "rounding": "detectron2",
        "anchor_sizes": sizes,
        "rounded_anchors": False,
        **_settings(config, pyramid),
        **({"box_beta": 0.0} if pyramid else {"pooling": "align"}),
    }
    notes += [
        f"anchors {_listed(sizes)}, not rounded" + ("" if pyramid else "; reordered, ratios outermost"),
        f"{align_note(arguments)}; input resized with antialiasing, its sides rounded",
        "input sizes, thresholds and proposal counts: "
        + ("its config's" if config else "the model zoo's (assumed; --config FILE.yaml tells)"),
    ]
    if base := config.get("_BASE_"):
        notes.append(
            f"its _BASE_ {reprlib.repr(base)} is not read: what the config leaves open is taken to be the model zoo's"
        )
    return Converted(kind, "faster_rcnn_fpn" if pyramid else "faster_rcnn_c4", arguments, state, notes)


def _settings(config: Mapping, pyramid: bool) -> dict[str, Any]:
    """Arguments of the builder that a config tells, the model zoo's where it does not."""
    check_among(config, "MODEL.ROI_BOX_HEAD.POOLER_TYPE", tuple(POOLERS))
    pooler = setting(config, "MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignV2")
    rpn, cuts = "MODEL.RPN.{}_NMS_TOPK_{}", {"train": (12000, 2000), "test": (6000, 1000)}
    if pyramid:
        cuts = {"train": (2000, 1000), "test": (1000, 1000)}
    heads = "MODEL.ROI_HEADS"
    return {
        "half_pixel": POOLERS[pooler],
        "align_samples": setting(config, "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", 0),
        "shorter_side": setting(config, "INPUT.MIN_SIZE_TEST", SETTINGS["shorter_side"]),
        "longer_side": setting(config, "INPUT.MAX_SIZE_TEST", SETTINGS["longer_side"]),
        "rois_per_image": setting(config, f"{heads}.BATCH_SIZE_PER_IMAGE", SETTINGS["rois_per_image"]),
        "score_threshold": setting(config, f"{heads}.SCORE_THRESH_TEST", SETTINGS["score_threshold"]),
        "nms_iou": setting(config, f"{heads}.NMS_THRESH_TEST", SETTINGS["nms_iou"]),
        "max_per_image": setting(config, "TEST.DETECTIONS_PER_IMAGE", SETTINGS["max_per_image"]),
        **{
            f"{phase}_proposals": tuple(
                setting(config, rpn.format(place, phase.upper()), cut)
                for place, cut in zip(("PRE", "POST"), pair, strict=True)
            )
            for phase, pair in cuts.items()
        },
    }


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


def _anchor_sizes(foreign: Foreign, config: Mapping, per_cell: int, pyramid: bool) -> list[float]:
    """Sides of the anchors: of the file's buffers, or of its config, or the default ones if their number is right."""
    where = f"{foreign.source}: anchors"
    levels = sorted((k for k in foreign.state if k.startswith(CELL_ANCHORS)), key=lambda k: int(k.rpartition(".")[2]))
    told = setting(config, "MODEL.ANCHOR_GENERATOR.SIZES", [])
    if not levels:
        told = told or ([[size] for size in SIZES] if pyramid else [list(SIZES)])
        counts = [len(level) if isinstance(level, list) and are_numbers(level, len(level)) else 0 for level in told]
        if counts != ([1] * len(SIZES) if pyramid else [per_cell // 3]) or per_cell != 3 * counts[0]:
            needed = "the file's anchor_generator.cell_anchors, or --config, to know their sizes"
            raise InputError(where, found=f"{per_cell} in a cell, which are not {told}", needed=needed)
        return [float(side) for level in told for side in level]
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
    if told and told != sizes:
        raise InputError(where, found=f"{sizes} in the file, {told} in the config", needed="the config of this file")
    return [side for level in sizes for side in level]


def _pixels(
    foreign: Foreign, config: Mapping, *, grouped: bool
) -> tuple[Sequence[float], Sequence[float], Channels, StrideOn, list[str]]:
    """Mean and deviation in the order of the channels, that order, the convolution that strides, and who told it."""
    check_among(config, "INPUT.FORMAT", ("BGR", "RGB"))
    mean, std = (_pixel_numbers(foreign, config, name) for name in ("pixel_mean", "pixel_std"))
    channels_told = setting(config, "INPUT.FORMAT", "").lower()
    stride_told: StrideOn | None = "3x3" if grouped else None
    if not channels_told and mean:
        far = [sum(abs(a - b) for a, b in zip(mean, order, strict=True)) for order in (RGB_MEAN[::-1], RGB_MEAN)]
        channels_told = "bgr" if far[0] <= far[1] else "rgb"
    if (first := setting(config, "MODEL.RESNETS.STRIDE_IN_1X1")) is not None:
        stride_told = "1x1" if first else "3x3"
    channels, stride_on = foreign.agree(channels_told or None, stride_told)
    if stride_on is None and std and std != [1.0] * 3:
        needed = "--stride-on 3x3 (torchvision's weights, ResNeXt) or --stride-on 1x1, or --config FILE.yaml"
        raise InputError(foreign.source, found=f"a pixel_std of {_listed(std)}: weights not of MSRA", needed=needed)
    assumed = ["BGR pixels"] * (channels is None) + ["stride on the first 1x1 convolution"] * (stride_on is None)
    channels, stride_on = channels or "bgr", stride_on or "1x1"
    usual = (RGB_MEAN[::-1], (1.0, 1.0, 1.0)) if mean or config else usual_pixels(channels, stride_on)
    mean, std = mean or list(usual[0]), std or list(usual[1])
    notes = [
        f"{channels.upper()} pixels over {_listed(std)}: folded into conv1",
        f"stride on the {'first 1x1' if stride_on == '1x1' else '3x3'} convolution",
    ]
    if assumed:
        hint = "if it finds little, say --config FILE.yaml, or --channels rgb, --stride-on 3x3"
        notes.append(f"ASSUMED, as neither file nor config tells: {' and '.join(assumed)} (the model zoo's); {hint}")
    return mean, std, channels, stride_on, notes


def _pixel_numbers(foreign: Foreign, config: Mapping, name: str) -> list[float]:
    """A buffer of the file, or the same in its config; empty: neither tells."""
    own = foreign.state[name].float().flatten().tolist() if name in foreign.state else []
    told = setting(config, f"MODEL.{name.upper()}", [])
    for where, values in ((name, own), (f"MODEL.{name.upper()}", told)):
        if values and not are_numbers(values, 3):
            raise InputError(f"{foreign.source}: {where}", found=reprlib.repr(values), needed="three numbers")
    if own and told and max(abs(a - b) for a, b in zip(own, told, strict=True)) > MEAN_TOLERANCE:
        found = f"{_listed(own)} in the file, {_listed(told)} in the config"
        raise InputError(f"{foreign.source}: {name}", found=found, needed="the config of this file")
    return own or told


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{float(value):g}" for value in values)
