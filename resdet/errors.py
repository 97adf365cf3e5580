"""The one kind of error a user can cause, always told in three parts: where, what was found, what is needed."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Sequence

LONGEST = 1500
"""Characters of a part of a message."""


class InputError(ValueError):
    """Something outside the program is wrong: a file, a config, a checkpoint, an argument.

    Tools print the message alone (no traceback) and exit with status 1; libraries catch it like any ``ValueError``.

    Args:
        where: the thing at fault, with its path or name.
        found: what was read there.
        needed: what would have been right.
    """

    def __init__(self, where: object, *, found: object = None, needed: object = None) -> None:
        self.where, self.found, self.needed = printable(where), found, needed
        if found is None and needed is None:  # how torch raises anew what a loader process raised: one text, traced
            super().__init__(str(where).rpartition("InputError: ")[2].strip())
        else:
            super().__init__(f"{self.where}\n  found:  {printable(found)}\n  needed: {printable(needed)}")


class _Bounded(reprlib.Repr):
    """What a file holds may be a list of a list of ... that is endless when it is written out."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother, self.maxlong = 3, 200, 200, 60
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = 12


bounded = _Bounded().repr
"""``repr`` of a value from a file, cut where it is long or deep."""


def printable(value: object) -> str:
    """A value in a message: bounded in length, its control characters shown and not sent to the terminal."""
    text = value if isinstance(value, str) else str(value) if _is_plain(value) else bounded(value)
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text)} characters)"
    return "".join(ch if ch.isprintable() or ch == "\n" else ch.encode("unicode_escape").decode() for ch in text)


def _is_plain(value: object) -> bool:
    """Whether it is no container, or one of plain values."""
    inside = value.items() if isinstance(value, dict) else value if isinstance(value, (list, tuple, set)) else ()
    return not any(isinstance(part, (list, set, dict)) for part in inside)


class Stopped(Exception):
    """A run that a signal has stopped, after it saved what it had.

    Args:
        number: of the signal.
        message: for the person at the terminal.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


def nearest(name: str, known: Iterable[str]) -> str:
    """``one of a, b, c``, led by the names most like ``name``: the ``needed`` part of an unknown-name error."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}? (of {len(known)} known)"
    listing = ", ".join(known[:30]) + (f", and {len(known) - 30} more" if len(known) > 30 else "")
    return f"one of: {listing}"


def listed(names: Sequence[str], *, shown: int = 5) -> str:
    """The first names, and how many more there are; ``"nothing"`` if none."""
    more = len(names) - shown
    return (", ".join(names[:shown]) or "nothing") + (f", and {more} more" if more > 0 else "")
