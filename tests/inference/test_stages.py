from __future__ import annotations

import pytest

from resdet.inference import stages as module
from resdet.inference.stages import Stages


class Clock:
    """Time passes when a stage works, and only then."""

    now = 0.0

    def work(self, seconds: float, value: object = None) -> object:
        self.now += seconds
        return value


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock.now)
    return clock


def test_once_per_key(clock):
    stages = Stages()
    assert stages.once("head", "a", lambda: clock.work(1, "of a")) == "of a"
    assert stages.once("head", "a", lambda: pytest.fail("computed again")) == "of a"
    assert stages.once("head", "b", lambda: clock.work(2, "of b")) == "of b"
    assert stages.once("rpn", "a", lambda: clock.work(4)) is None
    assert stages.once("rpn", "a", lambda: pytest.fail("None is a result")) is None
    assert stages.bill() == {"head": 3, "rpn": 4}  # what was asked for twice is paid once
    assert stages.bill() == {}


def test_a_stage_is_charged_for_its_own_work(clock):
    stages = Stages()

    def inner() -> None:
        clock.work(10)
        stages.once("innermost", 0, lambda: clock.work(100))

    def outer() -> None:
        clock.work(1)
        stages.once("inner", 0, inner)
        clock.work(2)
        stages.once("inner", 1, lambda: clock.work(20))

    stages.once("outer", 0, outer)
    assert stages.bill() == {"outer": 3, "inner": 30, "innermost": 100}


def test_a_cached_result_is_charged_with_all_inside_it(clock):
    stages = Stages()
    maps = ("backbone", 0, lambda: clock.work(10))

    def propose() -> None:
        stages.once(*maps)
        clock.work(1)

    def score() -> None:
        stages.once("proposals", 0, propose)
        stages.once(*maps)  # used twice
        clock.work(2)

    first = {"backbone": 10, "proposals": 1, "regions": 2}
    stages.once("regions", 0, score)
    assert stages.bill() == first
    stages.once("regions", 0, lambda: pytest.fail("computed again"))
    stages.once("refinement", 0, lambda: clock.work(4))
    assert stages.bill() == first | {"refinement": 4}  # the second row did 4, and is charged for all it stands on

    def again() -> None:  # a new stage around old ones
        stages.once("proposals", 0, lambda: pytest.fail("computed again"))
        clock.work(8)

    stages.once("ensemble", 0, again)
    assert stages.bill() == {"backbone": 10, "proposals": 1, "ensemble": 8}
    stages.once("ensemble", 0, again)
    assert stages.bill() == {"backbone": 10, "proposals": 1, "ensemble": 8}
    assert clock.now == 10 + 1 + 2 + 4 + 8


def test_an_error_inside_a_stage_leaves_the_accounts_right():
    stages = Stages()

    def fail() -> None:
        stages.once("inner", 1, lambda: 1)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        stages.once("outer", 1, fail)
    assert stages.bill() == {}
    stages.once("after", 1, lambda: 1)
    assert set(stages.bill()) == {"after"}
