"""``skip_unreadable``: data sets without the pictures that will not be read, which are counted and named."""

from __future__ import annotations

import hashlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import numpy as np

from resdet.datasets.annotations import Annotations, FileNames
from resdet.datasets.folder import FolderDataset
from resdet.datasets.headers import THREADS, Fault, faults
from resdet.datasets.images import is_cut
from resdet.errors import InputError, listed
from resdet.files import keep_arrays, kept_arrays, kept_path

logger = logging.getLogger(__name__)
T = TypeVar("T")


def without_unreadable(data: T) -> T:
    """The set without the pictures that will not be read. All are decoded once, and the answer is kept.

    Args:
        data: annotated images, or a folder per class.

    Raises:
        InputError: another kind of data, or nothing is left.
    """
    if isinstance(data, Annotations):
        rows = _readable([data.path(row) for row in range(len(data))], data.source, data)
        return data if len(rows) == len(data) else replace(data.select(rows), left_out=len(data) - len(rows))
    if isinstance(data, FolderDataset):
        index = data.index
        rows = _readable([os.path.join(index.folder, name) for name in index.files], index.folder, None)
        labels = index.labels[rows]
        if empty := [name for label, name in enumerate(index.classes) if label not in labels]:
            found = f"no picture that can be read of {len(empty)} classes: {listed(empty)}"
            raise InputError(index.folder, found=found, needed="at least one image in each")
        data.left_out = len(index) - len(rows)
        data.index = replace(index, files=FileNames([index.files[int(row)] for row in rows]), labels=labels)
        return data
    found = f"skip_unreadable=True for {type(data).__name__}"
    raise InputError("data", found=found, needed="data that are files of pictures, or skip_unreadable=False")


def _readable(paths: list[str], source: str, data: Annotations | None) -> np.ndarray:
    """(m,) rows of the files that are read."""
    place, state = kept_path(source, "readable"), _state(paths, data)
    kept = kept_arrays(place, state)
    if kept is None or set(kept) != {"rows"}:
        logger.info("%s: %d images are decoded once, to leave out those that cannot be read", source, len(paths))
        found = faults(data, whole=True) if data is not None else _undecodable(paths)
        kept = {"rows": np.array([fault.row for fault in found], dtype=np.int64)}
        keep_arrays(place, state, kept)
    bad = kept["rows"]
    if len(bad) == len(paths):
        raise InputError(source, found=f"none of {len(paths)} images can be read", needed="at least one")
    if len(bad):
        names = listed([paths[int(row)] for row in bad])
        told = "%s: %d of %d images cannot be read and are left out (skip_unreadable), of every figure too: %s"
        logger.warning(told, source, len(bad), len(paths), names)
    return np.setdiff1d(np.arange(len(paths)), bad)


def _undecodable(paths: list[str]) -> list[Fault]:
    def look(row: int) -> Fault | None:
        try:
            is_cut(paths[row])
        except InputError as error:
            return Fault(row, error)
        return None

    with ThreadPoolExecutor(THREADS) as pool:
        return [fault for fault in pool.map(look, range(len(paths))) if fault is not None]


def _state(paths: list[str], data: Annotations | None) -> str:
    """What changes when a file does, or the size that it should have."""
    digest = hashlib.sha256(b"" if data is None else data.hw.tobytes())
    for path in paths:
        try:
            known = os.stat(path)
            digest.update(os.fsencode(f"{path}\n{known.st_size} {known.st_mtime_ns}\n"))
        except OSError:
            digest.update(os.fsencode(f"{path}\nmissing\n"))
    return digest.hexdigest()
