"""Reading a data set although some of its pictures cannot be read, which are to be left out afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from resdet.datasets.images import image_size_hw
from resdet.errors import InputError

_LENIENT = ContextVar("lenient", default=False)


@contextmanager
def lenient() -> Iterator[None]:
    """In here readers pass over pictures that are missing or have no header."""
    before = _LENIENT.set(True)
    try:
        yield
    finally:
        _LENIENT.reset(before)


def is_lenient() -> bool:
    """Whether this is in :func:`lenient`."""
    return _LENIENT.get()


def header_hw(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(H, W) of an image, (0, 0) where it cannot be known.

    Raises:
        InputError: as :func:`resdet.datasets.images.image_size_hw`, but in :func:`lenient`.
    """
    try:
        return image_size_hw(path)
    except InputError:
        if is_lenient():
            return 0, 0
        raise
