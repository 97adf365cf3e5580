"""Configs: mmengine's pure-Python files, read once and strictly.

:func:`load_config` turns a file and the overrides of the command line into one typed :class:`ExperimentConfig`. Each
section is checked against its :class:`resdet.settings.Settings` and each call against the arguments of its function, so
a typo ends with the nearest name and not with a default silently kept. Below this door nobody reads a config again.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from resdet.engine import settings
from resdet.engine.calls import DATA, Call
from resdet.engine.extensions import check_hooks, check_visualizer
from resdet.engine.tasks import OWN_SECTIONS, Task, task_named
from resdet.errors import InputError, bounded, nearest
from resdet.settings import TESTED, Settings, arguments_of, data_arguments_of, marked, value_of_text

CALLS = ("model", "train_data", "test_data", "backbone")
"""``dict(type=function, **arguments)``. ``backbone`` may be left out: ``dict(type=define_net, name=..., ...)``, a net
of one's own, which ``model`` may then name."""
SETTINGS: dict[str, type[Settings]] = {
    kind.section: kind
    for kind in (
        settings.Loader,
        settings.Optimizer,
        settings.Schedule,
        settings.Run,
        settings.Publish,
        settings.Crop,
        settings.Regions,
    )
}
"""Sections of plain values; ``test`` is the task's own."""
_READING = threading.RLock()
"""What a config imports stands for itself until it is asked for, by a switch of mmengine that all threads share."""
VALUES = ("task", "metric", "augmentation", "load_from", "custom_hooks", "visualizer")
"""Sections that are one value. The last two are mmengine's own."""
SECTIONS = (*CALLS, *SETTINGS, "test", *VALUES)


@dataclass(frozen=True)
class ExperimentConfig:
    """A config, read and checked."""

    filename: str
    text: str
    """The whole of it as Python, for the record."""
    given: Mapping[str, Any]
    """As it was written, section by section, for records of mmengine."""
    task: Task
    metric: str
    train_data: Call
    test_data: Call
    model: Call
    backbone: Call | None
    loader: settings.Loader
    optimizer: settings.Optimizer
    schedule: settings.Schedule
    run: settings.Run
    publish: settings.Publish
    crop: settings.Crop
    regions: settings.Regions
    test: Any
    """The task's ``test_settings``."""
    augmentation: tuple
    """Of detection samples, in order."""
    load_from: str | None
    """A trained checkpoint to start from."""
    overridden: frozenset[str]
    """Arguments of the model that an override says."""
    custom_hooks: tuple
    """Further hooks of mmengine."""
    visualizer: Mapping[str, Any] | None
    """Of mmengine; None: local files."""
    said: tuple[str, ...] = ()
    """What the command line said beyond the file, as it was said, for the record."""

    @property
    def said_of_nets(self) -> dict[str, Any]:
        """What the overrides say of how every net is tested, whatever its checkpoint tells: arguments of a model."""
        own = self.model.settings
        names = [name for name in marked(type(own), TESTED) if name in self.overridden]
        return {name: getattr(own, name) for name in names}

    def describe_model(self) -> dict[str, Any]:
        """The net in plain values, as checkpoints keep it, and with it the backbone of one's own."""
        own = {} if self.backbone is None else {"define": self.backbone.describe()}
        return self.model.describe() | own


def load_config(
    path: str | Path, options: Sequence[str] = (), *, overrides: Mapping[str, Mapping[str, Any]] | None = None
) -> ExperimentConfig:
    """Read and check a config.

    Args:
        path: the file.
        options: ``section.key=value`` texts that override it; a value is read by the type of its setting.
        overrides: values by section and name, which need no reading.

    Raises:
        InputError: the file is missing or broken, or a key is unknown, missing or of the wrong type.
    """
    path = find_config(path)
    overridden = {option.partition("=")[0].removeprefix("model.") for option in options if option.startswith("model.")}
    with _READING:
        config = _read_file(path)
        for section, values in (overrides or {}).items():
            config.merge_from_dict({section: dict(values)})
        for option in options:
            _override(config, option)
        return _typed(config, path, frozenset(overridden), tuple(options))


def find_config(path: str | Path) -> Path:
    """The file of a config: as it is said, or that of the package with this name (``frcnn_r50_fpn_coco``)."""
    given = Path(path)
    package = Path(__file__).parents[1]
    named = given.name if given.suffix == ".py" else f"{given.name}.py"
    if not given.is_file() and str(given) in (given.name, f"configs/{given.name}"):
        for folder in (package.parent / "configs", package / "configs"):  # of a clone, of an installed wheel
            if (folder / named).is_file():
                return folder / named
    return given


def _read_file(path: Path) -> Config:
    if not path.is_file():
        folders = (path.parent, Path(__file__).parents[2] / "configs", Path(__file__).parents[1] / "configs")
        beside = {p.name for folder in folders for p in folder.glob("*.py")}
        raise InputError(f"config {path}", found="no such file", needed=nearest(path.name, beside))
    if path.suffix != ".py":  # mmengine would read .yaml and .json too, and .yaml runs what it names
        raise InputError(
            f"config {path}", found=f"suffix {path.suffix!r}", needed="a .py file, which is code that runs"
        )
    try:
        config = Config.fromfile(str(path))
        imported = [name for name, value in config.items() if callable(value) or inspect.ismodule(value)]
    except Exception as error:  # a config is the user's code, which can fail in any way; the cause is shown
        raise InputError(
            f"config {path}", found=f"{type(error).__name__}: {error}", needed="a config that runs"
        ) from error
    for name in imported:
        config._cfg_dict.pop(name)  # what the file imports is not a section
    return config


def _override(config: Config, option: str) -> None:
    """Put one ``section.key=value`` of the command line into the config."""
    key, equals, text = option.partition("=")
    if not equals or not key:
        raise InputError(f"option {option!r}", found="no '='", needed="section.key=value")
    section, _, name = key.partition(".")
    if section not in SECTIONS:
        raise InputError(f"option {option!r}", found=f"section {section!r}", needed=nearest(section, SECTIONS))
    if (section in VALUES) == bool(name) or "." in name:
        needed = f"{section}=value" if section in VALUES else f"{section}.key=value"
        raise InputError(f"option {option!r}", found=f"key {key!r}", needed=needed)
    if section in VALUES:
        value = value_of_text(settings.Values, section, text)
    else:
        kind = _kind(config, section)
        value = text if kind is None else value_of_text(kind, name, text)
    try:
        config.merge_from_dict({key: value})
    except TypeError as error:  # a dict in the place of another value
        raise InputError(f"option {option!r}", found=bounded(value), needed="a value of its kind") from error


def _kind(config: Config, section: str) -> type[Settings] | None:
    """The settings that a section fills, as far as the config tells yet."""
    if section == "test":
        return task_named(config["task"]).test_settings if config.get("task") in OWN_SECTIONS else None
    if section in SETTINGS:
        return SETTINGS[section]
    function = config.get(section, {}).get("type") if isinstance(config.get(section), Mapping) else None
    if not callable(function):
        return None
    return data_arguments_of(function) if section in DATA else arguments_of(function)


def _typed(config: Config, path: Path, overridden: frozenset[str], said: tuple[str, ...]) -> ExperimentConfig:
    where, text = f"config {path}", config.pretty_text
    given: dict[str, Any] = config.to_dict()
    for key in given:
        if key not in SECTIONS:
            raise InputError(where, found=f"unknown section {key!r}", needed=nearest(key, SECTIONS))
    if given.get("task") not in OWN_SECTIONS:
        needed = nearest(str(given.get("task")), OWN_SECTIONS)
        raise InputError(where, found=f"task={given.get('task')!r}", needed=needed)
    task = task_named(given["task"])
    if given.get("metric") not in task.metrics:
        needed = f"{nearest(str(given.get('metric')), task.metrics)}, with task = {task.name!r}"
        raise InputError(where, found=f"metric = {given.get('metric')!r}", needed=needed)
    for other, own in OWN_SECTIONS.items():
        for section in set(own) & given.keys() if other != task.name else ():
            raise InputError(where, found=f"{section} with task = {task.name!r}", needed=f"a {other} config")
    for section in CALLS[:3]:
        if section not in given:
            raise InputError(where, found=f"no section {section!r}", needed=f"{section} = dict(type=..., ...)")
    calls = {name: Call.read(given[name], where=where, section=name) for name in CALLS if name in given}
    kinds = {**SETTINGS, "test": task.test_settings}
    read = {name: kind.read(given.get(name, {}), where=where) for name, kind in kinds.items()}
    values = settings.Values.read({name: given[name] for name in VALUES if name in given}, where=where)
    check_hooks(values.custom_hooks)
    check_visualizer(values.visualizer)
    typed = ExperimentConfig(
        filename=str(path),
        text=text,
        given=given,
        overridden=overridden,
        said=said,
        **{**values.by_name(), "task": task},
        **{"backbone": None, **calls},
        **read,
    )
    task.check(typed)
    return typed
