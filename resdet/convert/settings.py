"""Settings in configs of other frameworks: read where they lie, checked where our nets have one value, never run."""

from __future__ import annotations

import ast
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from resdet.errors import InputError


def read_yaml(text: str) -> dict[str, Any]:
    """The settings in a config of detectron2, without those of its ``_BASE_``; nothing in it is run.

    Raises:
        InputError: it is no YAML, or has none of detectron2's sections.
    """
    needed = "a config.yaml of detectron2, with a section MODEL or INPUT"
    try:
        config = _plain(yaml.safe_load(text))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError("--config", found=" ".join(str(error).split())[:200], needed=needed) from error
    if not isinstance(config, dict) or not {"MODEL", "INPUT"} & config.keys():
        raise InputError("--config", found="none of its sections", needed=needed)
    return config


def _plain(value: Any) -> Any:
    """Tuples written as texts, ``"(1, 2)"``, which detectron2 reads as Python's, as lists."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, str) and value.strip()[:1] in ("(", "["):
        try:
            value = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, MemoryError):
            return value
    return list(map(_plain, value)) if isinstance(value, (list, tuple)) else value


def setting(config: Any, path: str, default: Any = None) -> Any:
    """What lies at ``a.b.c`` of nested dicts; of the default's type, if there is one.

    Raises:
        InputError: it is of another type.
    """
    value = config
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    if value is None:
        return default
    kind = (int, float) if isinstance(default, float) else type(default)
    if default is not None and not isinstance(value, kind):
        raise InputError(f"the file's config: {path}", found=reprlib.repr(value), needed=f"a value like {default!r}")
    return value


def check_fixed(config: Mapping, fixed: Mapping[str, Any], *, source: str) -> None:
    """Refuse settings of another value than the one that our nets have.

    Raises:
        InputError: names the first.
    """
    for path, value in fixed.items():
        if (told := setting(config, path)) is not None and told != value:
            raise InputError(f"{source}: its config", found=f"{path} = {reprlib.repr(told)}", needed=f"{value!r}")


def check_among(config: Mapping, path: str, legal: Sequence[str]) -> None:
    """Refuse a setting of another value than these, if it is there.

    Raises:
        InputError: it is.
    """
    if (told := setting(config, path)) is not None and told not in legal:
        raise InputError(f"the file's config: {path}", found=reprlib.repr(told), needed=" or ".join(legal))


def are_numbers(value: Any, count: int) -> bool:
    """Whether it is a list of so many numbers."""
    return isinstance(value, list) and len(value) == count and all(isinstance(v, (int, float)) for v in value)
