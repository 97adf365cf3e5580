"""Faster R-CNN files of mmdetection 2 and 3 (``.pth`` of its model zoo and of its runs).

Both of its pixel formats have the same keys, so the config that a file carries as text has to tell, or the user
(``--channels``, ``--stride-on``, or its ``.py`` by ``--config``). Its other conventions, where they differ from ours:
resized sides and anchors (mmcv rounds the former, nobody the latter), RoIAlign with as many samples as a bin is wide.
Background is last and has no box, and ratios are outermost, as here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from resdet.convert.renaming import (
    BLOCK,
    LEAF,
    SETTINGS,
    STYLES,
    SWITCHES,
    TRUNK,
    Channels,
    Converted,
    Foreign,
    Renames,
    StrideOn,
    align_note,
    backbone_name,
    fold_batchnorm,
    fold_pixels,
    rename,
    size_arguments,
    split_backbone,
    usual_pixels,
)
from resdet.convert.settings import are_numbers, check_among, check_fixed, setting
from resdet.errors import InputError

CONV5 = "roi_head.embedding.conv5."
COMMON: Renames = (
    (r"data_preprocessor\.(?:mean|std)", None),
    (rf"backbone\.{TRUNK}", r"backbone.\1"),
    (rf"rpn_head\.rpn_conv\.{LEAF}", r"rpn.head.conv.\1"),
    (rf"rpn_head\.rpn_cls\.{LEAF}", r"rpn.head.objectness.\1"),
    (rf"rpn_head\.rpn_reg\.{LEAF}", r"rpn.head.deltas.\1"),
    (rf"roi_head\.bbox_head\.fc_cls\.{LEAF}", r"roi_head.class_logits.\1"),
    (rf"roi_head\.bbox_head\.fc_reg\.{LEAF}", r"roi_head.box_deltas.\1"),
)
C4: Renames = (*COMMON, (rf"roi_head\.shared_head\.layer4\.{BLOCK}", CONV5 + r"\1"))
PYRAMID: Renames = (
    *COMMON,
    (rf"neck\.lateral_convs\.([0-3])\.conv\.{LEAF}", r"neck.lateral.\1.\2"),
    (rf"neck\.fpn_convs\.([0-3])\.conv\.{LEAF}", r"neck.output.\1.\2"),
    *((rf"roi_head\.bbox_head\.shared_fcs\.{n}\.{LEAF}", rf"roi_head.embedding.fc{n + 6}.\1") for n in (0, 1)),
)
FPN_STRIDES = [4, 8, 16, 32, 64]
FIXED = {
    "rpn_head.anchor_generator.ratios": [0.5, 1.0, 2.0],
    "rpn_head.anchor_generator.octave_base_scale": None,
    "rpn_head.anchor_generator.center_offset": 0.0,
    "rpn_head.bbox_coder.target_means": [0.0, 0.0, 0.0, 0.0],
    "rpn_head.bbox_coder.target_stds": [1.0, 1.0, 1.0, 1.0],
    "roi_head.bbox_head.bbox_coder.target_means": [0.0, 0.0, 0.0, 0.0],
    "roi_head.bbox_head.bbox_coder.target_stds": [0.1, 0.1, 0.2, 0.2],
    "roi_head.bbox_head.loss_cls.use_sigmoid": False,
    "roi_head.bbox_roi_extractor.roi_layer.type": "RoIAlign",
    "roi_head.bbox_roi_extractor.finest_scale": 56,
    "test_cfg.rpn.nms.iou_threshold": 0.7,
    "test_cfg.rcnn.nms.type": "nms",
}
"""Settings of a model that have one value in our nets, as in its model zoo's Faster R-CNN."""


def from_mmdetection(foreign: Foreign) -> Converted:
    """Faster R-CNN of mmdetection, C4 or FPN.

    Raises:
        InputError: a key has no place; pixel format and stride cannot be known; a setting has no like here.
    """
    pyramid = not any(key.startswith("roi_head.shared_head.") for key in foreign.state)
    kind = f"mmdetection Faster R-CNN {'FPN' if pyramid else 'C4'}"
    state = rename(foreign, PYRAMID if pyramid else C4, kind=kind)
    logits, deltas = (len(state.get(f"roi_head.{k}.weight", ())) for k in ("class_logits", "box_deltas"))
    if logits > 1 and deltas == 4 * logits:
        found = "a box for the background: a file of mmdetection 1, which has other conventions"
        raise InputError(foreign.source, found=found, needed="a file of mmdetection 2 or 3")
    shapes = size_arguments(state, pyramid=pyramid, source=foreign.source)
    config = read_config(foreign.config or foreign.meta.get("cfg") or foreign.meta.get("config") or "")
    if foreign.config is not None and not config:
        raise InputError("--config", found="no settings", needed="the .py of mmdetection that the file was made with")
    model = {"test_cfg": config.get("test_cfg"), **setting(config, "model", {})}
    check_fixed(model, FIXED, source=foreign.source)
    mean, std, channels, stride_on = _pixels(foreign, config)
    bgr = channels == "bgr"
    state = fold_batchnorm(state, *([] if foreign.batchnorm_eps is None else [foreign.batchnorm_eps]))
    conv1 = "backbone.conv1.weight"
    state[conv1] = fold_pixels(state[conv1], mean=mean, std=std, bgr=bgr, source=foreign.source)
    trunk = split_backbone(state, conv5=None if pyramid else CONV5)
    arguments = {
        **SETTINGS,
        **shapes,
        "backbone": backbone_name(trunk, stride_on=stride_on, source=foreign.source),
        **_input_size(config),
        "rounding": "mmdetection",
        "anchor_sizes": _anchor_sizes(foreign, model, state, pyramid),
        "rounded_anchors": False,
        "half_pixel": setting(model, "roi_head.bbox_roi_extractor.roi_layer.aligned", True),
        "align_samples": setting(model, "roi_head.bbox_roi_extractor.roi_layer.sampling_ratio", 0),
        **_test_settings(model, pyramid),
    }
    if pyramid:
        arguments |= {"box_beta": 0.0, "train_proposals": (2000, 1000)}
    else:
        arguments |= {"pooling": "align", "train_proposals": (12000, 2000)}
    told = "its config" if "backbone" in model else "as said"
    notes = [
        f"{'BGR' if bgr else 'RGB'} pixels over {', '.join(f'{v:g}' for v in std)} ({told}): folded into conv1",
        f"stride on the {stride_on} convolution ({told})",
        f"anchors {', '.join(f'{size:g}' for size in arguments['anchor_sizes'])}, not rounded",
        f"{align_note(arguments)}; sides of the resized input rounded",
        f"input sizes, thresholds and proposal counts: {told if 'backbone' in model else 'those of the model zoo'}",
    ]
    builder = "faster_rcnn_fpn" if pyramid else "faster_rcnn_c4"
    return Converted(kind, builder, arguments, state, notes, _classes(foreign.meta))


def read_config(text: str) -> dict[str, Any]:
    """The settings in a config's text, as mmengine and mmcv write it; what is not a plain value is left out.

    Nothing in it is run: ``dict(...)``, lists, tuples, numbers and texts are read from the syntax tree.
    """
    try:
        tree = ast.parse(text) if isinstance(text, str) else ast.parse("")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    found = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = _value(node.value)
    return found


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return {word.arg: _value(word.value) for word in node.keywords if word.arg}
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {key.value: _value(value) for key, value in pairs if isinstance(key, ast.Constant)}
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(entry) for entry in node.elts]
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _pixels(foreign: Foreign, config: dict) -> tuple[Sequence[float], Sequence[float], Channels, StrideOn]:
    """Mean and deviation in the order of the channels, that order, and the convolution that strides."""
    # mmdetection 3 tells it in the data preprocessor, 2 in img_norm_cfg, or only in the pipelines.
    places = [
        (setting(config, "model.data_preprocessor"), "bgr_to_rgb", False),
        (config.get("img_norm_cfg"), "to_rgb", True),
    ]
    places += [(step, "to_rgb", True) for step in _steps(config) if step.get("type") == "Normalize"]
    rows = [
        (place["mean"], place["std"], not place.get(key, default))
        for place, key, default in places
        if isinstance(place, Mapping) and are_numbers(place.get("mean"), 3) and are_numbers(place.get("std"), 3)
    ]
    check_among(config, "model.backbone.style", ("caffe", "pytorch"))
    style = setting(config, "model.backbone.style", "pytorch" if rows else None)
    told = ("bgr" if rows[0][2] else "rgb") if rows else STYLES[style][0]
    channels, stride_on = foreign.agree(told, STYLES[style][1])
    if not channels or not stride_on:
        found = "no config in the file that tells its pixel format and stride"
        raise InputError(foreign.source, found=found, needed=f"{SWITCHES}; or its .py by --config")
    mean, std = rows[0][:2] if rows else usual_pixels(channels, stride_on)
    return mean, std, channels, stride_on


def _steps(config: dict) -> list[Mapping]:
    """Steps of the test pipeline, also those inside others."""

    def inside(steps: Any) -> Iterator[Mapping]:
        for step in steps if isinstance(steps, list) else ():
            if isinstance(step, Mapping):
                yield step
                yield from inside(step.get("transforms"))
            yield from inside(step)

    return list(inside(config.get("test_pipeline") or setting(config, "data.test.pipeline")))


def _input_size(config: dict) -> dict[str, int]:
    for step in _steps(config):
        scale = step.get("img_scale") or step.get("scale")
        if isinstance(scale, list) and len(scale) == 2 and all(isinstance(side, int) for side in scale):
            return {"shorter_side": min(scale), "longer_side": max(scale)}
    return {}


def _anchor_sizes(foreign: Foreign, model: Mapping, state: Mapping, pyramid: bool) -> list[float]:
    where = f"{foreign.source}: anchors"
    strides = setting(model, "rpn_head.anchor_generator.strides", FPN_STRIDES if pyramid else [16])
    scales = setting(model, "rpn_head.anchor_generator.scales", [8] if pyramid else [2, 4, 8, 16, 32])
    if strides != (FPN_STRIDES if pyramid else [16]) or (pyramid and len(scales) != 1):
        needed = f"one scale on strides {FPN_STRIDES} for FPN, stride 16 for C4"
        raise InputError(where, found=f"scales {scales}, strides {strides}", needed=needed)
    per_cell = len(state["rpn.head.objectness.bias"])
    if per_cell != 3 * len(scales):
        raise InputError(where, found=f"{per_cell} in a cell", needed=f"{3 * len(scales)}, for scales {scales}")
    return [float(scale * stride) for stride in strides for scale in scales]


def _test_settings(model: Mapping, pyramid: bool) -> dict[str, Any]:
    test = setting(model, "test_cfg", {})
    after = next((n for key in ("max_per_img", "max_num", "nms_post") if (n := setting(test, f"rpn.{key}"))), 1000)
    return {
        "test_proposals": (setting(test, "rpn.nms_pre", 1000 if pyramid else 6000), after),
        "score_threshold": setting(test, "rcnn.score_thr", SETTINGS["score_threshold"]),
        "nms_iou": setting(test, "rcnn.nms.iou_threshold", setting(test, "rcnn.nms.iou_thr", SETTINGS["nms_iou"])),
        "max_per_image": setting(test, "rcnn.max_per_img", SETTINGS["max_per_image"]),
    }


def _classes(meta: Mapping[str, Any]) -> tuple[str, ...] | None:
    data = meta.get("dataset_meta")
    places = [meta, *([data] if isinstance(data, Mapping) else [])]
    named = next((place[key] for place in places for key in ("CLASSES", "classes") if place.get(key)), None)
    if isinstance(named, str):
        return (named,)
    return tuple(map(str, named)) if isinstance(named, (list, tuple)) else None
