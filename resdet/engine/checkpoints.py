"""Checkpoints of a run: written whole or not at all, read without unpickling objects, compared with what is asked."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import ConfigDict, Field, model_validator
from torch import Tensor, nn

from resdet.backbones.custom import define_net
from resdet.backbones.published import read_published
from resdet.backbones.weights import check_whole, load_exactly, read_weights
from resdet.engine.calls import Call, call_of_checkpoint, differences
from resdet.errors import InputError, bounded, listed
from resdet.files import replacing
from resdet.settings import CountOrNone, Settings
from resdet.unpickle import reason_of

LARGEST_META, DEEPEST_META = 300_000, 20
"""Values that a checkpoint may tell, in how many lists; 1,000 classes and a config are some thousands."""


class Meta(Settings):
    """What a checkpoint tells of its run: types and ranges; other entries, of other versions, are passed over."""

    model_config = ConfigDict(extra="allow")
    section: ClassVar[str] = "meta"
    task: str | None = None
    classes: tuple[str, ...] | None
    model: dict[str, Any] | None = None
    config: str | None = None
    step: CountOrNone | None = None
    figures: dict[str, float | None] | None = None
    test: dict[str, Any] | None = None
    category_ids: tuple[int, ...] | None = None
    settings: dict[str, Any] | None = None
    view: dict[str, int] | None = None
    warmup: dict[str, Any] | None = None
    best: Annotated[float, Field(allow_inf_nan=True)] | None = None
    without_better: CountOrNone | None = None
    validated: int | None = None

    @model_validator(mode="after")
    def _fit_together(self) -> Meta:
        names = self.classes or ()
        if len(set(names)) < len(names) or self.classes == ():
            raise InputError("meta.classes", found=bounded(names), needed="names, each once")
        if self.category_ids is not None and len(self.category_ids) != len(names):
            found = f"{len(self.category_ids)} ids"
            raise InputError("meta.category_ids", found=found, needed=f"one for each of the {len(names)} classes")
        return self


def write_checkpoint(path: Path, checkpoint: dict) -> None:
    """Write beside the file, then move into its place.

    Raises:
        InputError: the disk refuses.
    """
    try:
        with replacing(path) as file:
            torch.save(checkpoint, file)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        kept = f"{path} as it was stays" if path.exists() else "nothing was written"
        raise InputError(f"saving {path}", found=f"{error} ({kept})", needed="space on the disk") from error


def read_checkpoint(path: str | Path) -> dict:
    """A checkpoint of a run, or what ``tools/publish.py`` made of one, read without unpickling objects.

    Raises:
        InputError: no such file, damaged, or of another program.
    """
    if not os.path.isfile(path):
        found = "no file, but a folder, a pipe or a device" if os.path.exists(path) else "no such file"
        raise InputError(f"checkpoint {path}", found=found, needed="a .pth of a run")
    if Path(path).suffix == ".safetensors":
        state, facts = read_published(Path(path))
        if not isinstance(facts.get("meta"), dict):
            found = "weights of a backbone alone" if facts else "no checkpoint of a run"
            raise InputError(f"checkpoint {path}", found=found, needed=_needed_for(path))
        return _checked(path, {"meta": facts["meta"], "state_dict": state})
    check_whole(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        raise InputError(f"checkpoint {path}", found=reason_of(error), needed=_needed_for(path)) from error
    return _checked(path, checkpoint)


def _checked(path: str | Path, checkpoint: object) -> dict:
    """A checkpoint whose parts have the right types.

    Raises:
        InputError: they have not.
    """
    meta = checkpoint.get("meta") if isinstance(checkpoint, dict) else None
    if not isinstance(meta, dict) or "classes" not in meta or "state_dict" not in checkpoint:
        raise InputError(f"checkpoint {path}", found="no state_dict with meta", needed=_needed_for(path))
    where = f"checkpoint {path}"
    if any_depth := _too_deep(meta):
        raise InputError(f"{where}, meta", found=any_depth, needed="the texts, numbers and short lists of a run")
    Meta.read({key: value for key, value in meta.items() if isinstance(key, str)}, where=where)
    state = checkpoint["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise InputError(f"{where}, state_dict", found=bounded(state), needed="names and their tensors")
    if not isinstance(checkpoint.get("optimizer", {}), dict):
        raise InputError(f"{where}, optimizer", found=bounded(checkpoint["optimizer"]), needed="an optimizer's state")
    return checkpoint


def _too_deep(value: object) -> str:
    """What is wrong with a value that would be endless, or very long, when it is written out; else nothing.

    A list that holds another one many times is small in a file and in memory.
    """
    left, stack = LARGEST_META, [(value, 0)]
    while stack:
        part, depth = stack.pop()
        left -= 1
        if depth > DEEPEST_META or left < 0:
            return f"more than {LARGEST_META:,} parts" if left < 0 else f"lists in lists, {DEEPEST_META} deep"
        inside = part.values() if isinstance(part, dict) else part if isinstance(part, (list, tuple, set)) else ()
        stack += [(each, depth + 1) for each in inside]
    return ""


def _needed_for(path: str | Path) -> str:
    """What is needed in the place of a file that is no checkpoint of ours; of another program's detector, how to."""
    try:
        state, _ = read_weights(path)
    except InputError:
        state = {}
    if not any("rpn" in key for key in state):
        return "a .pth of a run of this program"
    ours = Path("work_dirs") / f"{Path(path).stem}.pth"
    return (
        f"what `python tools/convert.py {path} {ours}` makes of another program's detector; "
        "configs/converted_coco.py tests it"
    )


def check_same(
    source: object, meta: dict, *, classes: Sequence[str] | None = None, model: tuple[dict, Call] | None = None
) -> None:
    """Refuse a checkpoint that was trained for other classes, or with other settings that its weights do not show.

    Args:
        source: its path.
        meta: what it says.
        classes: those of the data.
        model: the description of the config's net, and its call.

    Raises:
        InputError: they differ.
    """
    where = f"checkpoint {source}"
    if classes is not None and list(meta["classes"]) != list(classes):
        raise InputError(where, found=_counted(meta["classes"]), needed=f"{_counted(classes)}, as the data has")
    if model is not None and (changed := differences(meta.get("model", model[0]), *model)):
        raise InputError(
            where,
            found="trained with " + ", ".join(f"model.{k}={was}" for k, (was, _) in changed.items()),
            needed=", ".join(f"model.{k}={now}" for k, (_, now) in changed.items()) + " of the config; or change that",
        )


def net_calls(
    meta: Mapping[str, Any], builders: Sequence[Callable], source: object, said: Mapping[str, Any] | None = None
) -> tuple[Call, Call | None]:
    """The calls that make the net of a checkpoint: of its builder, and of :func:`define_net` for a backbone of its own.

    Raises:
        InputError: the checkpoint tells no net, or one that it may not.
    """
    where, model = f"checkpoint {source}", meta.get("model")
    if not isinstance(model, Mapping) or "type" not in model:
        raise InputError(where, found="no description of its net", needed="one saved by this version")
    own = (
        call_of_checkpoint(model["define"], (define_net,), where=where, section="backbone")
        if "define" in model
        else None
    )
    return call_of_checkpoint(model, builders, where=where, section="model", said=said), own


def load_net(
    path: str | Path,
    classes: Sequence[str] | None,
    builders: Sequence[Callable],
    *,
    task: str,
    said: Mapping[str, Any] | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """The net of a task from its checkpoint alone, and what the checkpoint tells.

    Args:
        path: of the checkpoint.
        classes: those that it must have; None: any.
        builders: the functions that it may name.
        task: of the net.
        said: arguments of the net in place of the checkpoint's.

    Raises:
        InputError: damaged, of another task or other classes, or without a description of its net; its net has the name
            of another one, or takes no such argument.
    """
    loaded = read_checkpoint(path)
    meta = loaded["meta"]
    if meta.get("task", task) != task:
        raise InputError(f"checkpoint {path}", found=f"task {meta.get('task')!r}", needed=task)
    check_same(path, meta, classes=classes)
    model, own = net_calls(meta, builders, path, said)
    try:
        if own is not None:
            own()
        net = model(num_classes=len(meta["classes"]))
    except InputError as error:
        raise InputError(f"checkpoint {path}: {error}") from error
    state = {key.removeprefix("net."): value for key, value in loaded["state_dict"].items()}  # of the adapter
    load_exactly(net, state, source=path)
    return net, meta


def _counted(classes: Sequence[str]) -> str:
    return f"{len(classes)} classes ({listed(classes)})"
