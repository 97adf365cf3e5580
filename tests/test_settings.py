"""Settings: what is refused, in which words, and how texts of the command line are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import pytest

from resdet.errors import InputError
from resdet.settings import (
    CHANGEABLE,
    Changeable,
    Count,
    Fraction,
    Settings,
    arguments_of,
    marked,
    plain,
    takes_settings,
    value_of_text,
)


class Some(Settings):
    """For the tests."""

    section: ClassVar[str] = "some"
    count: Count = 16
    share: Fraction | None = None
    kind: Literal["a", "none"] = "a"
    root: str = "x"
    init: Changeable[str | None] = None
    names: tuple[str, ...] = ()
    marks: tuple[float, ...] = ()
    pair: tuple[int, int] = (1, 2)
    side: Changeable[int | Sequence[int]] = 3
    flag: bool = False


@pytest.mark.parametrize(
    ("values", "place", "found", "needed"),
    [
        ({"count": 0}, "some.count", "0", "a number in [1, inf]"),
        ({"count": 1.5}, "some.count", "1.5", "int"),
        ({"count": True}, "some.count", "True", "int"),
        ({"share": 2}, "some.share", "2", "a number in [0, 1]"),
        ({"share": float("nan")}, "some.share", "nan", "a number in [0, 1]"),
        ({"share": "half"}, "some.share", "'half'", "float or None"),
        ({"kind": "b"}, "some.kind", "'b'", "one of: a, none"),
        ({"marks": ("a",)}, "some.marks", "('a',)", "tuple[float, ...]"),
        ({"pair": [1, 2, 3]}, "some.pair", "[1, 2, 3]", "tuple[int, int]"),
        ({"side": 1.5}, "some.side", "1.5", "int or sequence[int]"),
        ({"cuont": 1}, "section 'some'", "unknown key 'cuont'", "did you mean 'count'? (of 10 known)"),
    ],
)
def test_what_is_refused(values, place, found, needed):
    for make, where in (
        (lambda: Some(**values), ""),
        (lambda: Some.read(values, where="config x.py"), "config x.py, "),
    ):
        with pytest.raises(InputError) as caught:
            make()
        assert str(caught.value) == f"{where}{place}\n  found:  {found}\n  needed: {needed}"


def test_lists_stand_for_tuples_and_nothing_else_is_converted():
    settings = Some(marks=[1, 2.5], side=[4, 5])
    assert (settings.marks, settings.side) == ((1.0, 2.5), (4, 5))
    assert plain(settings)["marks"] == [1.0, 2.5]
    assert settings.updated(count=2) == Some(count=2, marks=(1.0, 2.5), side=(4, 5))
    with pytest.raises(InputError, match=r"some\.count"):
        settings.updated(count=0)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("kind", "none", "none"),  # a legal text, and not Python's None
        ("root", "none", "none"),
        ("root", "2024", "2024"),
        ("root", "a,b(1)", "a,b(1)"),
        ("root", "[a", "[a"),
        ("root", "'a b'", "a b"),
        ("init", "none", None),
        ("init", "None", None),
        ("init", "x.pth", "x.pth"),
        ("names", "a,b", ("a,b",)),
        ("names", "('a', 'b')", ("a", "b")),
        ("marks", "[1, 2]", [1, 2]),
        ("side", "(1, 2)", (1, 2)),
        ("side", "7", 7),
        ("flag", "TRUE", True),
        ("share", "1e-3", 0.001),
        ("share", "half", "half"),  # fits nowhere: for `read` to refuse
        ("nowhere", "3", "3"),
    ],
)
def test_a_text_is_read_by_the_type_of_its_setting(name, text, value):
    assert value_of_text(Some, name, text) == value


def test_arguments_of_a_function():
    def reader(*, root: str, split: str = "train", sides: tuple[int, ...] = ()) -> None:
        """Nothing."""

    kind = arguments_of(reader)
    assert kind(root="x").split == "train"
    with pytest.raises(InputError, match="no 'root'"):
        kind.read({}, where="config", section="data")
    with pytest.raises(InputError, match=r"config, data\.sides\n  found:  3"):
        kind.read({"root": "x", "sides": 3}, where="config", section="data")


class Net(Settings):
    """For the next test."""

    width: Count = 3
    num_classes: int | None = None


def test_a_builder_takes_settings_or_their_names():
    @takes_settings
    def build(settings: Net) -> int:
        return settings.width * settings.num_classes

    assert build(Net(num_classes=2)) == build(num_classes=2) == 6
    assert arguments_of(build) is Net
    with pytest.raises(InputError, match=r"model\.num_classes"):
        build(width=3)
    with pytest.raises(InputError, match="'width'"):
        build(widht=3, num_classes=2)


def test_what_may_change_between_training_and_test():
    assert marked(Some, CHANGEABLE) == ["init", "side"]


def test_arguments_of_an_optimizer_are_values_too():
    from resdet.engine.settings import Optimizer

    assert value_of_text(Optimizer, "betas", "(0.8, 0.95)") == (0.8, 0.95)
    assert value_of_text(Optimizer, "amsgrad", "true") is True
    assert value_of_text(Optimizer, "differentiable", "what") == "what"
