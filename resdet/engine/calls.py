"""Calls: what ``dict(type=function, **arguments)`` in a config or in a checkpoint means."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from resdet.errors import InputError, nearest
from resdet.settings import CHANGEABLE, SKIPS, Settings, arguments_of, data_arguments_of, marked, plain

DATA = ("train_data", "test_data")
"""Sections that are readers of data."""


class Call(NamedTuple):
    """A function and its arguments, checked."""

    function: Callable
    settings: Settings
    """The arguments; those of a builder are its settings."""

    @classmethod
    def read(cls, given: Any, *, where: str, section: str) -> Call:
        """A call from a section of a config.

        Args:
            given: ``dict(type=..., **arguments)``; ``type`` is a function or its dotted name.
            where: the file, for messages.
            section: its part.

        Raises:
            InputError: no such dict, no function, or arguments that it does not take.
        """
        if not isinstance(given, Mapping):
            raise InputError(where, found=f"{section} = {given!r}", needed=f"{section} = dict(type=..., ...)")
        function = given.get("type")
        if isinstance(function, str):  # a config that was dumped into a checkpoint holds dotted names
            module, _, name = function.rpartition(".")
            try:
                function = getattr(importlib.import_module(module), name)
            except (ImportError, AttributeError, ValueError):
                function = None
        if not callable(function):
            raise InputError(f"{where}, section {section!r}", found=f"type={given.get('type')!r}", needed="a function")
        arguments = {name: value for name, value in given.items() if name != "type"}
        kind = data_arguments_of(function) if section in DATA else arguments_of(function)
        return cls(function, kind.read(arguments, where=where, section=section))

    def __call__(self, **supplied: Any) -> Any:
        """Call it; ``supplied`` fills in what the section leaves out, where the function takes it."""
        kind, said = type(self.settings), self.settings.model_fields_set
        given = {
            k: v for k, v in supplied.items() if k in kind.model_fields and getattr(self.settings, k, None) is None
        }
        if next(iter(inspect.signature(self.function).parameters), None) == "settings":
            return self.function(self.settings.updated(**given))
        arguments = {**{name: getattr(self.settings, name) for name in said if name != SKIPS}, **given}
        if not getattr(self.settings, SKIPS, False):
            return self.function(**arguments)
        from resdet.datasets.lenience import lenient  # a detector that is but used needs no reader of data
        from resdet.datasets.readable import without_unreadable

        with lenient():
            return without_unreadable(self.function(**arguments))

    def updated(self, **changes: Any) -> Call:
        """The same with other arguments."""
        return self._replace(settings=self.settings.updated(**changes))

    def describe(self) -> dict[str, Any]:
        """In plain values, as checkpoints keep it: dotted name of the function, arguments, defaults filled in."""
        said = {
            name: value
            for name, value in plain(self.settings).items()
            if name != "init" and (name, value) != (SKIPS, False)
        }
        return {"type": f"{self.function.__module__}.{self.function.__qualname__}", **said}


def call_of_checkpoint(
    given: Any, builders: Sequence[Callable], *, where: str, section: str, said: Mapping[str, Any] | None = None
) -> Call:
    """A call that a checkpoint tells. It may choose among the builders and give them arguments that they take.

    Args:
        given: what it says; ``init`` in it, which would read another file, is passed over.
        builders: the functions that it may name. The module is not looked at, so that they may move.
        where: the checkpoint, for messages.
        section: its part.
        said: arguments in place of its own.

    Raises:
        InputError: another function, or other arguments.
    """
    named = given.get("type") if isinstance(given, Mapping) else given
    known = {function.__qualname__: function for function in builders}
    name = str(named).rpartition(".")[2]
    if not isinstance(named, str) or name not in known:
        found, needed = f"a net made by {named!r}", nearest(name, known)
        raise InputError(f"{where}, section {section!r}", found=found, needed=needed)
    arguments = {key: value for key, value in given.items() if key not in ("type", "init", "define")}
    arguments |= said or {}
    function = known[name]
    return Call(function, arguments_of(function).read(arguments, where=where, section=section))


def differences(trained: Mapping[str, Any], model: Mapping[str, Any], call: Call) -> dict[str, tuple[Any, Any]]:
    """Settings of a net that its weights do not show, and in which two descriptions differ: name to both values.

    Weights would load into a net of other anchors or another pooling without a word, and its metrics would be wrong.

    Args:
        trained: what the checkpoint says; what an older one does not tell has its default.
        model: what the config says.
        call: of the config.
    """
    kinds = [str(said.get("type")).rpartition(".")[2] for said in (trained, model)]
    if kinds[0] != kinds[1]:
        return {"type": (trained.get("type"), model["type"])}
    kind = type(call.settings)
    defaults = {name: plain(field.default) for name, field in kind.model_fields.items() if not field.is_required()}
    free = {*marked(kind, CHANGEABLE), "type", "init"}
    old, new = ({**defaults, **plain_values(said)} for said in (trained, model))
    return {k: (old.get(k), new.get(k)) for k in {**old, **new} if k not in free and old.get(k) != new.get(k)}


def plain_values(said: Mapping[str, Any]) -> dict[str, Any]:
    """A description with tuples as lists, in whatever form it was kept."""
    return {name: plain(value) for name, value in said.items()}
