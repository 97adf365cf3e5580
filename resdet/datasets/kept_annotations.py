"""Large annotation files, kept as arrays in the cache and mapped from there: processes share the pages that they read.

A kept file has the SHA-256 of what it was made of, and a checksum of its own: a stale or damaged one is made anew.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors import SafetensorError
from safetensors.numpy import save_file

from resdet.datasets.annotations import Annotations, Written
from resdet.datasets.file_names import FileNames
from resdet.files import kept_path, replacing, sha256

logger = logging.getLogger(__name__)

LEAST_BYTES = 1 << 25
"""Of a file that is kept: a smaller one is read in half a second."""
VERSION = 1
"""Of what is kept."""
ARRAYS = tuple(f.name for f in fields(Annotations) if f.type == "np.ndarray")


class Kept:
    """The place in the cache of one annotation file, as read in one way; a small file has none.

    Args:
        source: the annotation file.
        asked: how it is read, in plain values: each way has a place of its own.
    """

    def __init__(self, source: str, asked: Sequence[Any]) -> None:
        self.source, self.told = source, list[str]()
        self._path: Path | None = None
        if os.path.isfile(source) and os.path.getsize(source) >= LEAST_BYTES:
            words = json.dumps([VERSION, *asked])
            self._path = kept_path(source, f"{zlib.crc32(words.encode()):08x}").with_suffix(".safetensors")
            self._fingerprint = f"{words} {sha256(source)}"

    def read(self) -> Annotations | None:
        """What was kept, and what was said of it said again; None where that is nothing, or of another file."""
        if self._path is None:
            return None
        try:
            with safetensors.safe_open(self._path, framework="pt") as file:
                facts = json.loads(file.metadata()["facts"])
                mapped = {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118 (no mapping)
            if facts["fingerprint"] != self._fingerprint or facts["checksum"] != _checksum(mapped):
                return None
            found = _assembled(self.source, facts["classes"], mapped)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            return None
        for text in facts["told"]:
            logger.warning("%s", text)
        return found

    @contextmanager
    def listening(self) -> Iterator[None]:
        """What is logged of the file meanwhile belongs to it, and is said again when it is read from the cache."""
        ear, room = _Ear(self.told), logging.getLogger("resdet.datasets")
        room.addHandler(ear)
        try:
            yield
        finally:
            room.removeHandler(ear)

    def keep(self, annotations: Annotations, names: Sequence[str]) -> None:
        """Keep what was read; where nothing can be written, say so and go on.

        Args:
            annotations: of the file.
            names: n names of images as the file has them.
        """
        if self._path is None:
            return
        arrays = {name: getattr(annotations, name) for name in ARRAYS}
        arrays |= {f"written.{name}": part for name, part in annotations.written._asdict().items()}
        arrays |= {f"files.{name}": part for name, part in FileNames(names).arrays.items()}
        arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        facts = {"fingerprint": self._fingerprint, "checksum": _checksum(arrays), "told": self.told}
        facts["classes"] = annotations.classes
        try:
            with replacing(self._path) as file:
                save_file(arrays, file.name, {"facts": json.dumps(facts)})
                os.chmod(file.name, os.stat(file.fileno()).st_mode)  # safetensors makes a file for one user alone
        except (OSError, SafetensorError) as error:
            logger.info("%s is not kept: %s", self._path, error)


class _Ear(logging.Handler):
    def __init__(self, heard: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        self._heard.append(record.getMessage())


def _assembled(source: str, classes: Sequence[str], mapped: Mapping[str, np.ndarray]) -> Annotations:
    """Annotations whose ``files`` are as written."""
    written = Written(*(mapped[f"written.{name}"] for name in Written._fields))
    files = FileNames.of(mapped["files.text"], mapped["files.offsets"])
    arrays = {name: mapped[name] for name in ARRAYS}
    return Annotations(source=source, image_root="", classes=tuple(classes), files=files, repaired=written, **arrays)


def placed(annotations: Annotations, image_root: str, names: Sequence[str], found: Sequence[str]) -> Annotations:
    """What was kept, below a folder in which ``names`` are ``found``."""
    files = annotations.files if list(names) == list(found) else FileNames(found)
    return replace(annotations, image_root=image_root, files=files)


def _checksum(arrays: Mapping[str, np.ndarray]) -> int:
    value = 0
    for name in sorted(arrays):
        array = arrays[name]
        value = zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), value)
        value = zlib.crc32(array.reshape(-1).view(np.uint8), value)
    return value
