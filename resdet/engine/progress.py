"""How far a pass over data is: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable

from resdet.engine import distributed

LINE_EVERY = 30.0
"""Seconds between two lines of progress where there is no terminal."""


def shown(
    batches: Iterable, total: int | None, doing: str = "evaluating", *, say: Callable[[str], None] | None = None
) -> Iterable:
    """With a progress bar on a terminal, elsewhere with a line every so often.

    Args:
        batches: to walk over.
        total: number of them; None: not known.
        doing: what is done with them.
        say: takes the lines, which else go to standard error; given where a terminal has a bar already.
    """
    if distributed.rank() or (sys.stdout.isatty() and say is not None):
        return batches
    if not sys.stdout.isatty():
        return _told(batches, total, doing, say or (lambda line: print(line, file=sys.stderr, flush=True)))
    from rich.progress import track

    return track(batches, doing, total=total, transient=True)


def _told(batches: Iterable, total: int | None, doing: str, say: Callable[[str], None]) -> Iterable:
    began = last = time.perf_counter()
    for done, batch in enumerate(batches):
        now = time.perf_counter()
        if done and now - last >= LINE_EVERY:
            left = "" if total is None else f" of {total} batches, {clock((now - began) / done * (total - done))} left"
            say(f"{doing}: {done}{left}")
            last = now
        yield batch


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, ``1:02:05``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
