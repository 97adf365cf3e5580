"""A look at the files of a data set before they are needed: what will stop a run is said before its first step."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from resdet.datasets.annotations import Annotations
from resdet.datasets.images import image_size_hw
from resdet.errors import InputError

THREADS = 8
"""They wait for the disk, most of the time."""


def fault_of(data: Annotations, row: int) -> InputError | None:
    """What is wrong with the file of an image, by its header: it is missing, no image, or of another size."""
    path = data.path(row)
    try:
        hw = image_size_hw(path)
    except InputError as error:
        return error
    annotated = tuple(data.hw[row].tolist())
    if 0 in annotated or annotated in (hw, hw[::-1]):  # upright, or as it is stored
        return None
    found, needed = (f"{h} x {w} pixels (height x width)" for h, w in (hw, annotated))
    return InputError(f"image {path}", found=found, needed=f"{needed}, as {data.source} says")


def faults(data: Annotations) -> list[InputError]:
    """What is wrong with the files of a set, by their headers: thousands take a second."""
    with ThreadPoolExecutor(THREADS) as pool:
        return [fault for fault in pool.map(lambda row: fault_of(data, row), range(len(data))) if fault is not None]


def check_files(data: Annotations, what: str) -> None:
    """Refuse a set with files that will stop a run.

    Args:
        data: the set.
        what: it is, for the message.

    Raises:
        InputError: names how many, and the first.
    """
    if found := faults(data):
        first = f"{found[0].where}: {found[0].found}"
        needed = "whole files of the annotated size; tools/check_data.py lists all, and --fix leaves them out"
        told = f"{len(found)} of {len(data)} {what} that will not be read; the first: {first}"
        raise InputError(data.source, found=told, needed=needed)


class Watch:
    """Looks at the headers of a set beside the first steps of a run.

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
        for row in self._rows:
            if self._ended.is_set() or self.fault is not None:
                return
            self.fault = fault_of(self._data, row)

    def stop(self) -> None:
        """End it."""
        self._ended.set()
        self._thread.join()
