"""Seconds of a piece of work, and several pieces in turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from torch.utils.benchmark import timer

Told = TypeVar("Told")


def seconds(work: Callable[[], object]) -> float:
    """Seconds of one call, with what it gave the device to do."""
    started = timer()  # waits for the device
    work()
    return timer() - started


def own_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process in one call: other processes of the machine do not count."""
    started = time.process_time()
    work()
    return time.process_time() - started


def in_turns(*functions: Callable[[], Told], runs: int) -> list[list[Told]]:
    """What each function says in ``runs`` rounds; every other round goes backwards, so that nobody is always first."""
    told: list[list[Told]] = [[] for _ in functions]
    order = list(range(len(functions)))
    for _ in range(runs):
        for place in order:
            told[place].append(functions[place]())
        order.reverse()
    return told
