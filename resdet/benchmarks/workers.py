"""An object in a process of its own, asked from here: its allocator, its peak of memory and its settings are its own.

Both sides of a comparison live at once, and only the one that was asked runs.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

import torch


class Worker:
    """``make(*arguments)`` in a new process, which starts at once; :meth:`built` waits for it.

    Args:
        make: a class or function that the new process can import.
        arguments: plain values.
        threads: of torch in that process; None for its own choice.
    """

    def __init__(self, make: Callable[..., Any], *arguments: Any, threads: int | None = None) -> None:
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        self._made = self._pool.submit(_make, make, arguments, threads)

    def built(self) -> Worker:
        """The worker, when its object is there.

        Raises:
            Exception: as the object raised it.
            BrokenProcessPool: the process has ended.
        """
        self._made.result()
        return self

    def send(self, method: str, *arguments: Any) -> Future:
        """Ask without waiting."""
        return self._pool.submit(_call, method, arguments)

    def ask(self, method: str, *arguments: Any) -> Any:
        """What a method returns; errors as those of :meth:`built`."""
        return self.send(method, *arguments).result()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)


_SERVED: list[Any] = []
"""In the new process: the object."""


def _make(make: Callable[..., Any], arguments: tuple, threads: int | None) -> None:
    if threads:
        torch.set_num_threads(threads)
    _SERVED.append(make(*arguments))


def _call(method: str, arguments: tuple) -> Any:
    return getattr(_SERVED[0], method)(*arguments)
