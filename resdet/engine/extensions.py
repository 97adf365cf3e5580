"""What users of mmengine bring along: hooks of their own and its visualization backends, by name or by class."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.registry import HOOKS, VISBACKENDS, Registry
from mmengine.utils import get_object_from_string

from resdet.errors import InputError, nearest

PACKAGES = {
    "TensorboardVisBackend": "tensorboard",
    "WandbVisBackend": "wandb",
    "MLflowVisBackend": "mlflow",
    "ClearMLVisBackend": "clearml",
    "NeptuneVisBackend": "neptune",
    "DVCLiveVisBackend": "dvclive",
    "AimVisBackend": "aim",
}
"""What mmengine's visualization backends import."""


def check_hooks(hooks: Sequence[Mapping[str, Any]]) -> None:
    """Refuse hooks that mmengine does not know, or arguments that they do not take.

    Raises:
        InputError: one of these.
    """
    for hook in hooks:
        _check(hook, HOOKS, "custom_hooks", also=("priority",))


def check_visualizer(visualizer: Mapping[str, Any] | None) -> None:
    """Likewise for ``dict(vis_backends=[dict(type=...), ...])``.

    Raises:
        InputError: no such dict, an unknown backend, or arguments that it does not take.
    """
    if visualizer is None:
        return
    known = ("type", "vis_backends", "name")
    for key in visualizer:
        if key not in known:
            raise InputError("section 'visualizer'", found=f"unknown key {key!r}", needed=nearest(key, known))
    backends = visualizer.get("vis_backends")
    if not isinstance(backends, Sequence) or isinstance(backends, str):
        raise InputError("visualizer.vis_backends", found=repr(backends), needed="[dict(type=...), ...]")
    for backend in backends:
        _check(backend, VISBACKENDS, "visualizer.vis_backends")


def check_installed(visualizer: Mapping[str, Any]) -> None:
    """Refuse backends whose package is missing, before mmengine fails in its first step.

    Raises:
        InputError: what to install.
    """
    for backend in visualizer["vis_backends"]:
        name = backend["type"] if isinstance(backend["type"], str) else backend["type"].__name__
        package = PACKAGES.get(name.rpartition(".")[2])
        if package is not None and importlib.util.find_spec(package) is None:
            raise InputError(f"visualizer, {name}", found=f"no package {package}", needed=f"pip install {package}")


def _check(given: Any, registry: Registry, where: str, *, also: Sequence[str] = ()) -> None:
    if not isinstance(given, Mapping) or "type" not in given:
        raise InputError(where, found=repr(given), needed="dict(type=..., ...)")
    kind = given["type"]
    if isinstance(kind, str) and "." in kind:  # a class that the config imports
        try:
            kind = get_object_from_string(kind)
        except (ImportError, AttributeError, ValueError):
            kind = None
    elif isinstance(kind, str):
        registry.import_from_location()
        known = registry.module_dict
        if kind not in known:
            raise InputError(where, found=f"type={kind!r}", needed=nearest(kind, known))
        kind = known[kind]
    if not inspect.isclass(kind):
        raise InputError(
            where, found=f"type={given['type']!r}", needed="a class, or the name of one that is registered"
        )
    taken = inspect.signature(kind).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        return
    for name in set(given) - {"type", *also}:
        if name not in taken:
            found = f"{kind.__name__} with unknown argument {name!r}"
            raise InputError(where, found=found, needed=nearest(name, [*taken, *also]))
