from __future__ import annotations

import pytest

from resdet.inference import clock as module
from resdet.inference.clock import Clock


def test_steps_add_up(monkeypatch):
    now = iter([0.0, 2.0, 10.0, 13.0, 20.0, 24.0])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(now))
    clock = Clock()
    for name in ("backbone", "proposals", "backbone"):
        with clock.step(name):
            pass
    assert clock.seconds == {"backbone": 2 + 4, "proposals": 3}
    other = Clock()
    other.seconds += clock.seconds
    assert other.seconds == clock.seconds


def test_an_error_inside_a_step_is_passed_on_and_its_time_forgotten():
    clock = Clock()
    with pytest.raises(ValueError, match="no"), clock.step("backbone"):
        raise ValueError("no")
    assert not clock.seconds
