"""An object in a process of its own, asked over a pipe: its allocator, its peak of memory and its settings are its own.

Both sides of a comparison live at once, and only the one that was asked runs.
"""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from resdet.errors import InputError


class Worker:
    """``make(*arguments)`` in a new process, which starts at once; :meth:`receive` first tells that it is built.

    Args:
        make: a class or function that the new process can import.
        arguments: plain values.
    """

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, make, arguments), daemon=True)
        self._process.start()
        other.close()

    def send(self, method: str, *arguments: Any) -> None:
        """Ask without waiting."""
        self._pipe.send((method, arguments))

    def receive(self) -> Any:
        """The next answer.

        Raises:
            InputError: as the object raised it.
            RuntimeError: it raised another error, whose text this is, or the process has ended.
        """
        try:
            failed, answer = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"a process of the benchmark ended with {self._process.exitcode}") from None
        if failed:
            raise answer
        return answer

    def ask(self, method: str, *arguments: Any) -> Any:
        """What a method returns."""
        self.send(method, *arguments)
        return self.receive()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self._pipe.close()
        self._process.join(timeout=0 if error[0] else 10)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()


def _serve(pipe: Connection, make: Callable[..., Any], arguments: tuple) -> None:
    served, method = None, None
    while True:
        try:
            answer = (False, getattr(served, method)(*arguments) if method else None)
            if method is None:
                served = make(*arguments)
        except InputError as error:
            answer = (True, error)
        except Exception:
            answer = (True, RuntimeError(traceback.format_exc()))
        try:
            pipe.send(answer)
            method, arguments = pipe.recv()
        except (EOFError, BrokenPipeError, KeyboardInterrupt):
            return
