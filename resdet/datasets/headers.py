"""A look at the files of a data set before they are needed: what will stop a run is said before its first step."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from resdet.datasets.annotations import Annotations
from resdet.datasets.folder import FolderIndex
from resdet.datasets.images import image_size_hw, is_cut
from resdet.errors import InputError

logger = logging.getLogger(__name__)
THREADS = 8
"""They wait for the disk, most of the time."""
WHOLE = 5_000
"""Images that are decoded before a run begins (COCO has so many for validation), JPEGs at an eighth of their size; of
larger sets the headers are looked at, and the rest beside the first steps."""


class Fault(NamedTuple):
    """A file that will not be read."""

    row: int
    error: InputError


class Look(NamedTuple):
    """What the file of an image is."""

    error: InputError | None
    """Why it will not be read."""
    cut: bool
    """Its last bytes are missing, but no rows."""


def look(data: Annotations, row: int, *, whole: bool) -> Look:
    """Look at the file of an image.

    Args:
        data: the set.
        row: the image.
        whole: decode it; else its header is all that is seen: that it is missing, no image, or of another size.
    """
    path = data.path(row)
    try:
        hw = image_size_hw(path)
        cut = whole and is_cut(path)
    except InputError as error:
        return Look(error, False)
    annotated = tuple(data.hw[row].tolist())
    if 0 in annotated or annotated in (hw, hw[::-1]):  # upright, or as it is stored
        return Look(None, cut)
    found, needed = (f"{h} x {w} pixels (height x width)" for h, w in (hw, annotated))
    return Look(InputError(f"image {path}", found=found, needed=f"{needed}, as {data.source} says"), cut)


def faults(data: Annotations, *, whole: bool) -> list[Fault]:
    """What is wrong with the files of a set. Those that lack their last bytes alone are counted in a warning.

    Args:
        data: the set.
        whole: as for :func:`look`; of headers thousands take a second.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        looks = list(pool.map(lambda row: look(data, row, whole=whole), range(len(data))))
    _tell_cut(data, [row for row, seen in enumerate(looks) if seen.cut])
    return [Fault(row, seen.error) for row, seen in enumerate(looks) if seen.error is not None]


def _tell_cut(data: Annotations, rows: list[int]) -> None:
    if rows:
        told = "%s: %d of %d images lack their last bytes, but no rows, and are read; the first: %s"
        logger.warning(told, data.source, len(rows), len(data), data.path(rows[0]))


def check_files(data: Annotations, what: str, *, whole: bool) -> None:
    """Refuse a set with files that will stop a run.

    Args:
        data: the set.
        what: it is, for the message.
        whole: as for :func:`look`.

    Raises:
        InputError: names how many, and the first.
    """
    if found := faults(data, whole=whole):
        first = f"{found[0].error.where}: {found[0].error.found}"
        needed = "whole files of the annotated size; tools/check_data.py lists all, and --fix leaves them out, as does "
        needed += "skip_unreadable=True in the section of these data"
        told = f"{len(found)} of {len(data)} {what} that will not be read; the first: {first}"
        raise InputError(data.source, found=told, needed=needed)


def check_folder(data: FolderIndex, what: str) -> None:
    """The same for a folder of classes, by the headers of its files.

    Raises:
        InputError: names how many, and the first.
    """

    def fault(name: str) -> InputError | None:
        try:
            image_size_hw(os.path.join(data.folder, name))
        except InputError as error:
            return error
        return None

    with ThreadPoolExecutor(THREADS) as pool:
        found = [error for error in pool.map(fault, data.files) if error is not None]
    if found:
        told = (
            f"{len(found)} of {len(data)} {what} that will not be read; the first: {found[0].where}: {found[0].found}"
        )
        raise InputError(data.folder, found=told, needed="whole image files")


class Watch:
    """Decodes the files of a set beside the first steps of a run, JPEGs at an eighth of their size.

    Args:
        data: the set.
        rows: in this order; all by default.

    Attributes:
        fault: the first that was found.
    """

    def __init__(self, data: Annotations, rows: Iterable[int] | None = None) -> None:
        self.fault: InputError | None = None
        self._data, self._rows, self._ended = data, range(len(data)) if rows is None else rows, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        cut = []
        for row in self._rows:
            seen = look(self._data, row, whole=True)
            cut += [row] if seen.cut else []
            self.fault = seen.error
            if self._ended.is_set() or self.fault is not None:
                return
        _tell_cut(self._data, cut)

    def stop(self) -> None:
        """End it."""
        self._ended.set()
        self._thread.join()
