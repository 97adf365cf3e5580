"""Settings: what a config, a flag or Python says, checked where it comes in and typed from there on.

Each section of a config is a :class:`Settings`. The arguments of a function that a config names (a data reader, say)
become one by :func:`arguments_of`, so everything is read in one way, with the same messages.
"""

from __future__ import annotations

import ast
import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache, wraps
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import annotated_types
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model, model_validator
from typing_extensions import Self

from resdet.errors import InputError, nearest

S = TypeVar("S", bound="Settings")
T = TypeVar("T")
SKIPS = "skip_unreadable"
"""Setting of all data: leave out the pictures that cannot be read."""
CHANGEABLE = "changeable"
"""Marks a setting of a net that may differ between training and test."""

TESTED = "tested"
"""Marks a setting that says how a net is tested, which an override may say of several nets."""
Changeable = Annotated[T, CHANGEABLE]
Tested = Annotated[T, CHANGEABLE, TESTED]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
CountOrNone = Annotated[int, Field(ge=0)]
Width = Annotated[int, Field(ge=1, le=16_384)]
"""Channels; a checkpoint's or a config's text cannot ask for all the memory there is."""
Layers = Annotated[int, Field(ge=0, le=64)]
"""How many of one kind, likewise."""
Side = Annotated[int, Field(ge=1, le=65_536)]
"""Pixels of an image, likewise."""
Classes = Annotated[int, Field(ge=1, le=100_000)]
"""How many, likewise."""


class Settings(BaseModel):
    """A group of settings. Unknown names, wrong types and numbers out of range are refused.

    Lists stand for tuples, so that a config may write either. Values are not converted otherwise: 1.5 is no int, and
    "1" is no number.

    Raises:
        InputError: names the setting, what was found, and what is right.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
    __test__: ClassVar[bool] = False  # pytest takes classes named Test... for tests
    section: ClassVar[str] = ""
    """Its name in a config."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _in_our_words(type(self), values, error) from None

    @model_validator(mode="before")
    @classmethod
    def _lists_are_tuples(cls, values: Any) -> Any:
        return {key: _tuples(value) for key, value in values.items()} if isinstance(values, Mapping) else values

    @classmethod
    def read(cls, values: Mapping[str, Any], *, where: str, section: str | None = None) -> Self:
        """Settings from a file.

        Args:
            values: name to value.
            where: the file, for messages.
            section: the name of its part; the class's own by default.

        Raises:
            InputError: as for the class, with the file's name before.
        """
        section = section or cls.section
        if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
            raise InputError(where, found=f"{section} = {values!r}", needed=f"{section} = dict(...)")
        try:
            return cls(**values)
        except InputError as error:
            place = error.where if error.where.startswith("section") else f"{section}.{error.where.rpartition('.')[2]}"
            place = place.replace("section ''", f"section {section!r}").replace(f"{cls.section!r}", f"{section!r}")
            raise InputError(f"{where}, {place}", found=error.found, needed=error.needed) from None

    def updated(self, **changes: Any) -> Self:
        """The same with other values, checked like the first ones."""
        return type(self)(**{**{name: getattr(self, name) for name in self.model_fields_set}, **changes})


def value_of_text(kind: type[Settings], name: str, text: str) -> Any:
    """The value that a text of the command line stands for, by the type of the setting.

    A setting that is a text takes the text as it is, so that ``none``, ``2024`` and names with commas or brackets stay
    what they are; only quotes around it go. Anything else is read as Python writes it; ``true``, ``false`` and
    ``none`` in any case are known. What fits nowhere is returned as it was read, for :meth:`Settings.read` to refuse.

    Args:
        kind: the settings.
        name: one of them.
        text: what stands behind the "=".
    """
    field = kind.model_fields.get(name)
    read: Any = {"true": True, "false": False, "none": None}.get(text.lower(), text)
    with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
        read = ast.literal_eval(text)
    if field is None:  # an argument of torch's optimizers, say, or a misspelt name
        return read if kind.model_config.get("extra") == "allow" else text
    if read is None and _fits(field, None):
        return None
    unquoted = read if isinstance(read, str) else text
    return next((value for value in (unquoted, read, (unquoted,)) if _fits(field, _tuples(value))), read)


@cache
def arguments_of(function: Callable) -> type[Settings]:
    """The arguments of a function as settings; of one that takes a :class:`Settings`, those.

    Raises:
        TypeError: an argument without a type.
    """
    parameters = inspect.signature(function, eval_str=True).parameters
    first = next(iter(parameters.values()), None)
    if first is not None and isinstance(first.annotation, type) and issubclass(first.annotation, Settings):
        return first.annotation
    fields: dict[str, Any] = {
        name: (parameter.annotation, ... if parameter.default is parameter.empty else parameter.default)
        for name, parameter in parameters.items()
    }
    return create_model(function.__name__, __base__=Settings, **fields)


@cache
def data_arguments_of(function: Callable) -> type[Settings]:
    """:func:`arguments_of` a reader of data, and what every reader takes."""
    fields: Any = {SKIPS: (bool, False)}
    return create_model(function.__name__, __base__=arguments_of(function), **fields)


def takes_settings(build: Callable[[S], T]) -> Callable[..., T]:
    """Let a builder be called with its settings, ``build(settings)``, or with their names, ``build(backbone=...)``."""
    kind = next(iter(inspect.signature(build, eval_str=True).parameters.values())).annotation

    @wraps(build)
    def call(settings: S | None = None, /, **values: Any) -> T:
        settings = kind(**values) if settings is None else settings
        if getattr(settings, "num_classes", None) is None:
            raise InputError("model.num_classes", found="nothing", needed="the number of classes")
        return build(settings)

    return call


def marked(kind: type[Settings], mark: str) -> list[str]:
    """Names of the settings with a mark, :data:`CHANGEABLE` or :data:`TESTED`."""
    return [name for name, field in kind.model_fields.items() if mark in field.metadata]


def plain(value: Any) -> Any:
    """A value as JSON and checkpoints hold it: tuples become lists, settings become dicts."""
    if isinstance(value, Settings):
        return {name: plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, (tuple, list)):
        return [plain(entry) for entry in value]
    return value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(entry) for entry in value) if isinstance(value, (list, tuple)) else value


def _fits(field: Any, value: Any) -> bool:
    adapter = TypeAdapter(Annotated[(field.annotation, CHANGEABLE, *field.metadata)], config=ConfigDict(strict=True))
    try:
        adapter.validate_python(value)
    except ValidationError:
        return False
    return True


def _in_our_words(kind: type[Settings], values: Mapping[str, Any], error: ValidationError) -> InputError:
    first = error.errors(include_url=False)[0]
    own = first.get("ctx", {}).get("error")
    if isinstance(own, InputError):
        return own
    name = str(first["loc"][0]) if first["loc"] else ""
    where, part = f"{kind.section}.{name}".lstrip("."), f"section {kind.section!r}"
    if first["type"] == "extra_forbidden":
        return InputError(part, found=f"unknown key {name!r}", needed=nearest(name, kind.model_fields))
    if first["type"] == "missing":
        return InputError(part, found=f"no {name!r}", needed=f"{name}=...")
    return InputError(where, found=repr(values.get(name)), needed=needed_of(kind.model_fields[name], values.get(name)))


def needed_of(field: Any, value: Any = None) -> str:
    """What a setting takes, in words.

    Args:
        field: of ``model_fields``.
        value: what was given: a number is told the range, anything else the type.
    """
    inside = (tuple, Sequence) if isinstance(value, (tuple, list)) else ()
    bounds = {type(bound): bound for bound in _bounds((field.annotation, *field.metadata), inside)}
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    whole = isinstance(value, int) or "int" not in str(field.annotation) or "float" in str(field.annotation)
    if is_number and bounds and whole:
        return _range(bounds)
    if isinstance(value, (tuple, list)) and bounds and all(isinstance(entry, (int, float)) for entry in value):
        return f"{say(field.annotation)}, {_range(bounds)} each"
    if isinstance(value, str) and typing.get_origin(field.annotation) is Literal:
        return nearest(value, map(str, typing.get_args(field.annotation)))
    return say(field.annotation)


def _range(bounds: Mapping[type, Any]) -> str:
    low, high = bounds.get(annotated_types.Ge), bounds.get(annotated_types.Le)
    if above := bounds.get(annotated_types.Gt):
        return f"a number above {above.gt}" + (f", {high.le} at most" if high else "")
    if below := bounds.get(annotated_types.Lt):
        return f"a number in [{low.ge if low else '-inf'}, {below.lt})"
    return f"a number in [{low.ge if low else '-inf'}, {high.le if high else 'inf'}]"


def _bounds(parts: Any, inside: tuple = ()) -> Iterator[Any]:
    for part in parts if isinstance(parts, tuple) else (parts,):
        if isinstance(part, annotated_types.BaseMetadata):
            yield part
        elif hasattr(part, "metadata"):
            yield from _bounds(tuple(part.metadata), inside)
        if typing.get_origin(part) is Annotated or typing.get_origin(part) in (typing.Union, types.UnionType, *inside):
            yield from _bounds(typing.get_args(part), inside)


def say(kind: Any) -> str:
    """A type in words."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return say(arguments[0])
    if origin is Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(say(argument) for argument in arguments)
    if origin in (tuple, Sequence):
        return f"{'tuple' if origin is tuple else 'sequence'}[{', '.join(say(a) for a in arguments)}]"
    return {types.NoneType: "None", ...: "..."}.get(kind) or str(getattr(kind, "__name__", kind))
