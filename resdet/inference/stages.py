"""Results of the stages for one batch: each computed once, whoever asks for it, with the seconds it took."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch


class Result(NamedTuple):
    """What a stage gave."""

    value: Any
    seconds: float
    """Without the stages inside it."""
    uses: frozenset[tuple]
    """Keys of those."""


class Stages:
    """A memory of stage results for one batch.

    The rows of the paper's Table 9 share most of their work. Through this memory they share it in fact, while each of
    them is still charged for all that it uses.

    Args:
        wait: wait for the GPU at the ends of each stage, so that the seconds are those of its own work.
    """

    def __init__(self, *, wait: bool = False) -> None:
        self._results: dict[tuple, Result] = {}
        self._open: list[set[tuple]] = [set()]  # keys used by the caller and by each stage that is under way
        self._nested = [0.0]
        self._wait = wait

    def once(self, stage: str, key: Hashable, compute: Callable[[], Any]) -> Any:
        """The result of a stage for ``key``; computed unless it was before."""
        name = (stage, key)
        if name not in self._results:
            self._open.append(set())
            self._nested.append(0.0)
            started = self._clock()
            try:
                value = compute()
            finally:  # after an error, too, the caller's account is its own again
                seconds = self._clock() - started
                nested, used = self._nested.pop(), self._open.pop()
                self._nested[-1] += seconds
            self._results[name] = Result(value, seconds - nested, frozenset(used))
        result = self._results[name]
        self._open[-1] |= {name, *result.uses}
        return result.value

    def bill(self) -> dict[str, float]:
        """Seconds per stage of all that was used since the last bill, whether computed then or before."""
        used, self._open[0] = self._open[0], set()
        seconds: dict[str, float] = {}
        for name in used:
            seconds[name[0]] = seconds.get(name[0], 0.0) + self._results[name].seconds
        return seconds

    def _clock(self) -> float:
        if self._wait:
            torch.cuda.synchronize()
        return time.perf_counter()
