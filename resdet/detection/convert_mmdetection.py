"""Faster R-CNN files of mmdetection 2 and 3 (``.pth`` of its model zoo and of its runs).

Both of its pixel formats have the same keys, so the config that a file carries as text has to tell, or the user
(``--style``). Its other conventions, where they differ from ours: anchors not rounded, RoIAlign with as many samples as
a bin is wide. Background is last and has no box, and ratios are outermost, as here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from resdet.detection.convert_state import (
    BLOCK,
    LEAF,
    SETTINGS,
    TRUNK,
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

NORMALISATION = {
    "pytorch": (RGB_MEAN, RGB_STD, False),
    "caffe": (RGB_MEAN[::-1], (1.0, 1.0, 1.0), True),
}
"""(mean, deviation, is it BGR) that go with each style in the model zoo's Faster R-CNN."""


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
    config = read_config(foreign.meta.get("cfg") or foreign.meta.get("config") or "")
    model = {"test_cfg": config.get("test_cfg"), **_at(config, "model", {})}
    _check_fixed(foreign, model)
    mean, std, bgr, style = _pixels(foreign, config)
    state = fold_batchnorm(state, *([] if foreign.batchnorm_eps is None else [foreign.batchnorm_eps]))
    conv1 = "backbone.conv1.weight"
    state[conv1] = fold_pixels(state[conv1], mean=mean, std=std, bgr=bgr, source=foreign.source)
    trunk = split_backbone(state, conv5=None if pyramid else CONV5)
    arguments = {
        **SETTINGS,
        **shapes,
        "backbone": backbone_name(trunk, style=style, source=foreign.source),
        **_input_size(config),
        "anchor_sizes": _anchor_sizes(foreign, model, state, pyramid),
        "rounded_anchors": False,
        "half_pixel": _at(model, "roi_head.bbox_roi_extractor.roi_layer.aligned", True),
        "align_samples": _at(model, "roi_head.bbox_roi_extractor.roi_layer.sampling_ratio", 0),
        **_test_settings(model, pyramid),
    }
    if pyramid:
        arguments |= {"box_beta": 0.0, "train_proposals": (2000, 1000)}
    else:
        arguments |= {"pooling": "align", "train_proposals": (12000, 2000)}
    told = "the file's config" if "backbone" in model else "--style"
    notes = [
        f"{'BGR' if bgr else 'RGB'} pixels over {', '.join(f'{v:g}' for v in std)} ({told}): folded into conv1",
        f"stride on the {'first 1x1' if style == 'caffe' else '3x3'} convolution ({told})",
        f"anchors {', '.join(f'{size:g}' for size in arguments['anchor_sizes'])}, not rounded",
        f"RoIAlign: {'half-pixel' if arguments['half_pixel'] else 'no half-pixel'} centres, "
        f"{arguments['align_samples'] or 'as many'} samples{'' if arguments['align_samples'] else ' as a bin is wide'}",
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


def _at(config: Any, path: str, default: Any = None) -> Any:
    """What lies at ``a.b.c`` of nested dicts; of the default's type, if there is one."""
    for key in path.split("."):
        config = config.get(key) if isinstance(config, Mapping) else None
    if config is None:
        return default
    kind = (int, float) if isinstance(default, (int, float)) else type(default)
    if default is not None and not isinstance(config, kind):
        raise InputError(f"the file's config: {path}", found=repr(config), needed=f"a value like {default!r}")
    return config


def _pixels(foreign: Foreign, config: dict) -> tuple[Sequence[float], Sequence[float], bool, Style]:
    """Mean and deviation in their order, whether that is BGR, and the style of the stride."""
    # mmdetection 3 tells it in the data preprocessor, 2 in img_norm_cfg, or only in the pipelines.
    places = [
        (_at(config, "model.data_preprocessor"), "bgr_to_rgb", False),
        (config.get("img_norm_cfg"), "to_rgb", True),
    ]
    places += [(step, "to_rgb", True) for step in _steps(config) if step.get("type") == "Normalize"]
    rows = [
        (place["mean"], place["std"], not place.get(key, default))
        for place, key, default in places
        if isinstance(place, Mapping) and _numbers(place.get("mean")) and _numbers(place.get("std"))
    ]
    style = _at(config, "model.backbone.style", "pytorch" if rows else None)
    if style not in ("caffe", "pytorch", None) or (foreign.style and style and style != foreign.style):
        raise InputError(
            foreign.source, found=f"style={style!r} in the file's config", needed=f"{foreign.style or style}"
        )
    style = style or foreign.style
    if style is None:
        found = "no config in the file that tells its pixel format and stride"
        needed = "--style caffe (BGR, stride on the first 1x1) or --style pytorch (RGB, stride on the 3x3)"
        raise InputError(foreign.source, found=found, needed=needed)
    return *(rows[0] if rows else NORMALISATION[style]), style


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(isinstance(v, (int, float)) for v in value)


def _steps(config: dict) -> list[Mapping]:
    """Steps of the test pipeline, also those inside others."""

    def inside(steps: Any) -> Iterator[Mapping]:
        for step in steps if isinstance(steps, list) else ():
            if isinstance(step, Mapping):
                yield step
                yield from inside(step.get("transforms"))
            yield from inside(step)

    return list(inside(config.get("test_pipeline") or _at(config, "data.test.pipeline")))


def _input_size(config: dict) -> dict[str, int]:
    for step in _steps(config):
        scale = step.get("img_scale") or step.get("scale")
        if isinstance(scale, list) and len(scale) == 2 and all(isinstance(side, int) for side in scale):
            return {"shorter_side": min(scale), "longer_side": max(scale)}
    return {}


def _check_fixed(foreign: Foreign, model: Mapping) -> None:
    for path, value in FIXED.items():
        told = _at(model, path)
        if told is not None and told != value:
            raise InputError(f"{foreign.source}: its config", found=f"{path} = {told!r}", needed=f"{value!r}")


def _anchor_sizes(foreign: Foreign, model: Mapping, state: Mapping, pyramid: bool) -> list[float]:
    where = f"{foreign.source}: anchors"
    strides = _at(model, "rpn_head.anchor_generator.strides", FPN_STRIDES if pyramid else [16])
    scales = _at(model, "rpn_head.anchor_generator.scales", [8] if pyramid else [2, 4, 8, 16, 32])
    if strides != (FPN_STRIDES if pyramid else [16]) or (pyramid and len(scales) != 1):
        needed = f"one scale on strides {FPN_STRIDES} for FPN, stride 16 for C4"
        raise InputError(where, found=f"scales {scales}, strides {strides}", needed=needed)
    per_cell = len(state["rpn.head.objectness.bias"])
    if per_cell != 3 * len(scales):
        raise InputError(where, found=f"{per_cell} in a cell", needed=f"{3 * len(scales)}, for scales {scales}")
    return [float(scale * stride) for stride in strides for scale in scales]


def _test_settings(model: Mapping, pyramid: bool) -> dict[str, Any]:
    test = _at(model, "test_cfg", {})
    after = next((n for key in ("max_per_img", "max_num", "nms_post") if (n := _at(test, f"rpn.{key}"))), 1000)
    return {
        "test_proposals": (_at(test, "rpn.nms_pre", 1000 if pyramid else 6000), after),
        "score_threshold": _at(test, "rcnn.score_thr", SETTINGS["score_threshold"]),
        "nms_iou": _at(test, "rcnn.nms.iou_threshold", _at(test, "rcnn.nms.iou_thr", SETTINGS["nms_iou"])),
        "max_per_image": _at(test, "rcnn.max_per_img", SETTINGS["max_per_image"]),
    }


def _classes(meta: Mapping[str, Any]) -> tuple[str, ...] | None:
    data = meta.get("dataset_meta")
    places = [meta, *([data] if isinstance(data, Mapping) else [])]
    named = next((place[key] for place in places for key in ("CLASSES", "classes") if place.get(key)), None)
    if isinstance(named, str):
        return (named,)
    return tuple(map(str, named)) if isinstance(named, (list, tuple)) else None
