"""How long the steps of a prediction take."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Seconds of named steps, summed over their runs.

    Args:
        wait: wait for the GPU at both ends of a step, so that its seconds are those of its own work.

    Attributes:
        seconds: of each step so far.
    """

    def __init__(self, *, wait: bool = False) -> None:
        self.wait = wait
        self.seconds: Counter[str] = Counter()

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time what happens inside; steps are not nested."""
        started = self._now()
        yield
        self.seconds.update({name: self._now() - started})  # type: ignore[dict-item]  # typeshed counts whole things

    def _now(self) -> float:
        if self.wait and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter()
