"""Configs: mmengine's pure-Python files, read strictly.

A config is a handful of sections. Three are calls, ``dict(type=function, **arguments)``: ``model``, ``train_data`` and
``test_data``. The others are the settings of :mod:`resdet.engine.settings`. Each key is checked against what its
function or its settings take, so a typo ends with the nearest name and not with a default silently kept.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal

from mmengine.config import Config

from resdet.engine import settings
from resdet.errors import InputError, nearest
from resdet.inference.settings import Inference
from resdet.localization.settings import Localization

CALLS = ("model", "train_data", "test_data")
OPTIONAL_CALLS = ("backbone",)
"""``backbone = dict(type=define_net, name=..., ...)`` describes a net of one's own, which ``model`` may then name."""
SETTINGS = {
    "loader": settings.Loader,
    "optimizer": settings.Optimizer,
    "schedule": settings.Schedule,
    "run": settings.Run,
    "publish": settings.Publish,
    "test": Inference,  # of a detector; see TESTS
    "crop": settings.Crop,
    "regions": settings.Regions,
}
TESTS = {"detection": Inference, "classification": settings.ClassifierTest, "localization": Localization}
"""What section ``test`` fills, by task."""
OF_TASK = {"augmentation": "detection", "crop": "localization", "regions": "localization"}
"""Sections that only one task reads."""
SCALARS = {
    "task": ("detection", "classification", "localization"),
    "metric": ("coco", "voc07", "voc12", "classification", "localization"),
    "augmentation": None,
    "load_from": None,
}
SUPPLIED = ("num_classes",)
"""Arguments of a model that may be left out, since they follow from the data."""

TESTED = (
    *("shorter_side", "longer_side", "antialias", "rounding", "multiple", "test_proposals"),
    *("score_threshold", "nms_iou", "max_per_image"),
)
"""Arguments of a detector that say how it is tested."""
FREE = (
    *TESTED,
    *("num_classes", "init", "frozen_stages", "frozen_batchnorm", "box_beta"),
    *("label_smoothing", "mixup", "cutmix", "window", "checkpoint", "zero_last_bn", "new_head"),
    *("train_proposals", "rois_per_image", "background_iou", "anchors_per_image", "positive_iou"),
)
"""Arguments of a model that may differ between training and test."""


def load_config(path: str | Path, options: Sequence[str] = ()) -> Config:
    """Read and check a config.

    Args:
        path: the file.
        options: ``section.key=value`` texts that override it.

    Raises:
        InputError: the file is missing or broken, or a key is unknown, missing or of the wrong type.
    """
    path = Path(path)
    if not path.is_file():
        beside = sorted(p.name for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        raise InputError(f"config {path}", found="no such file", needed=nearest(path.name, beside))
    try:
        config = Config.fromfile(str(path))
        imported = [name for name, value in config.items() if callable(value) or inspect.ismodule(value)]
    except Exception as error:  # a config is the user's code, which can fail in any way; the cause is shown
        raise InputError(
            f"config {path}", found=f"{type(error).__name__}: {error}", needed="a config that runs"
        ) from error
    for name in imported:
        config._cfg_dict.pop(name)  # what the file imports is not a section
    for option in options:
        key, value = _parse_option(option)
        section, _, name = key.partition(".")
        if section not in sections():
            raise InputError(f"option {option!r}", found=f"section {section!r}", needed=nearest(section, sections()))
        if (section in SCALARS) == bool(name) or "." in name:
            needed = f"{section}=value" if section in SCALARS else f"{section}.key=value"
            raise InputError(f"option {option!r}", found=f"key {key!r}", needed=needed)
        config.merge_from_dict({key: value})
    _check(config, path)
    return config


def sections() -> list[str]:
    """Names of the legal sections."""
    return [*CALLS, *OPTIONAL_CALLS, *SETTINGS, *SCALARS]


def read_settings(config: Config, section: str) -> Any:
    """The settings of a section, defaults filled in."""
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in config.get(section, {}).items()}
    return kind_of(config, section)(**values)


def kind_of(config: Config, section: str) -> type:
    """The named tuple that a section fills."""
    return TESTS[config.task] if section == "test" else SETTINGS[section]


def call(config: Config, section: str, **supplied: Any) -> Any:
    """Call what a section names with what it gives; ``supplied`` fills in what it leaves out, where it is taken."""
    arguments = {k: v for k, v in config[section].items() if k != "type"}
    function = target(config, section)
    taken = inspect.signature(function).parameters
    return function(**{**{k: v for k, v in supplied.items() if k in taken}, **arguments})


def target(config: Config, section: str) -> Callable:
    """The function that a section names."""
    named = config[section].get("type")
    if isinstance(named, str):  # a config that was dumped into a checkpoint holds dotted names
        try:
            named = _import(named)
        except (ImportError, AttributeError, ValueError) as error:
            raise InputError(f"config section {section!r}", found=f"type={named!r}", needed="a function") from error
    if not callable(named):
        raise InputError(f"config section {section!r}", found=f"type={named!r}", needed="type=<a function>")
    return named


def describe(function: Callable, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A call in plain values, as checkpoints keep it: dotted name of the function, arguments, defaults filled in."""
    parameters = inspect.signature(function).parameters
    defaults = {k: p.default for k, p in parameters.items() if p.default is not p.empty}
    said = {k: v for k, v in {**defaults, **arguments}.items() if k not in ("type", "init")}
    return {"type": f"{function.__module__}.{function.__qualname__}", **{k: _plain(v) for k, v in said.items()}}


def describe_model(config: Config) -> dict[str, Any]:
    """The model section in plain values, and with it the section of a backbone of one's own."""
    own = {"define": describe(target(config, "backbone"), config.backbone)} if "backbone" in config else {}
    return describe(target(config, "model"), config.model) | own


def differences(trained: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings of a net that its weights do not show, and in which two descriptions differ: name to both values.

    Weights would load into a net of other anchors or another pooling without a word, and its figures would be wrong.
    What an older checkpoint does not tell has its default.
    """
    if trained.get("type") != model["type"]:
        return {"type": (trained.get("type"), model["type"])}
    defaults = describe(_import(model["type"]), {})
    old, new = {**defaults, **trained}, {**defaults, **model}
    return {k: (old.get(k), new.get(k)) for k in {**old, **new} if k not in FREE and old.get(k) != new.get(k)}


def _plain(value: Any) -> Any:
    return [_plain(entry) for entry in value] if isinstance(value, (tuple, list)) else value


def _import(dotted: str) -> Any:
    module, _, name = dotted.rpartition(".")
    return getattr(importlib.import_module(module), name)


def tested(options: Sequence[str]) -> dict[str, Any]:
    """What overrides of a config say of how its detector is tested: arguments of the model among :data:`TESTED`."""
    said = {key.removeprefix("model."): value for key, value in map(_parse_option, options) if key.startswith("model.")}
    return {name: value for name, value in said.items() if name in TESTED}


def _parse_option(option: str) -> tuple[str, Any]:
    key, equals, text = option.partition("=")
    if not equals or not key:
        raise InputError(f"option {option!r}", found="no '='", needed="section.key=value")
    try:
        return key, ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return key, {"true": True, "false": False, "none": None}.get(text.lower(), text)


def _check(config: Config, path: Path) -> None:
    where = f"config {path}"
    for key in config:
        if key not in sections():
            raise InputError(where, found=f"unknown section {key!r}", needed=nearest(key, sections()))
    for key, legal in SCALARS.items():
        if legal and config.get(key) not in legal:
            raise InputError(where, found=f"{key}={config.get(key)!r}", needed=nearest(str(config.get(key)), legal))
    if (config.task == "localization") != (config.metric == "localization"):
        found = f"metric = {config.metric!r} with task = {config.task!r}"
        raise InputError(where, found=found, needed="metric = 'localization' with that task, and with no other")
    for key, task in OF_TASK.items():
        if key in config and config.task != task:
            raise InputError(where, found=f"{key} with task = {config.task!r}", needed=f"a {task} config")
    if not _fits(config.get("augmentation", ()), tuple[str, ...]):
        raise InputError(where, found=f"augmentation={config.augmentation!r}", needed="a tuple of names")
    for section in (*CALLS, *OPTIONAL_CALLS, *SETTINGS):
        if not isinstance(config.get(section, {}), Mapping):
            raise InputError(where, found=f"{section} = {config[section]!r}", needed=f"{section} = dict(...)")
    for section in (*CALLS, *(name for name in OPTIONAL_CALLS if name in config)):
        if section not in config:
            raise InputError(where, found=f"no section {section!r}", needed=f"{section} = dict(type=..., ...)")
        given = {k: v for k, v in config[section].items() if k != "type"}
        check_arguments(target(config, section), given, where=where, section=section)
    for section in SETTINGS:
        check_settings(kind_of(config, section), config.get(section, {}), where=where, section=section)


def check_settings(kind: type, values: Mapping[str, Any], *, where: str, section: str) -> None:
    """Refuse settings that a section does not have, or whose values are of another type or out of range.

    Args:
        kind: the named tuple that the section fills.
        values: what it says.
        where: who says it, for messages.
        section: its name.

    Raises:
        InputError: one of these.
    """
    _check_keys(f"{where}, section {section!r}", values, kind._fields)
    for name, value in values.items():
        _check_type(f"{where}, {section}.{name}", value, typing.get_type_hints(kind)[name])
        least, greatest = settings.RANGES.get(f"{section}.{name}", (0, math.inf))
        if isinstance(value, (int, float)) and not (math.isfinite(value) and least <= value <= greatest):
            raise InputError(f"{where}, {section}.{name}", found=value, needed=f"a number in [{least}, {greatest}]")


def check_arguments(function: Callable, given: Mapping[str, Any], *, where: str, section: str) -> None:
    """Refuse arguments that a function does not take, lacks, or has of another type.

    Args:
        function: what a section names.
        given: its arguments, without ``type``.
        where: the config or the checkpoint that gives them, for messages.
        section: the section's name, likewise.

    Raises:
        InputError: one of these.
    """
    parameters = inspect.signature(function, eval_str=True).parameters
    _check_keys(f"{where}, section {section!r}", given, parameters)
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in given and name not in SUPPLIED:
            raise InputError(f"{where}, section {section!r}", found=f"no {name!r}", needed=f"{name}=...")
        if name in given and parameter.annotation is not parameter.empty:
            _check_type(f"{where}, {section}.{name}", given[name], parameter.annotation)


def _check_keys(where: str, given: Mapping, legal: Any) -> None:
    for name in given:
        if name not in legal:
            raise InputError(where, found=f"unknown key {name!r}", needed=nearest(str(name), legal))


def _check_type(where: str, value: Any, kind: Any) -> None:
    if not _fits(value, kind):
        raise InputError(where, found=repr(value), needed=_say(kind))


def _fits(value: Any, kind: Any) -> bool:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return value in arguments
    if origin in (typing.Union, UnionType):
        return any(_fits(value, one) for one in arguments)
    if origin in (tuple, Sequence):  # a config may write either as a list
        if not isinstance(value, (tuple, list)):
            return False
        if origin is Sequence or arguments[1:] == (...,):
            return all(_fits(entry, arguments[0]) for entry in value)
        return len(value) == len(arguments) and all(map(_fits, value, arguments))
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if not isinstance(origin or kind, type):  # Any and its like
        return True
    return isinstance(value, origin or kind) and not (kind is int and isinstance(value, bool))


def _say(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(kind)))
    return getattr(kind, "__name__", str(kind)) if not typing.get_args(kind) else str(kind).replace("NoneType", "None")
