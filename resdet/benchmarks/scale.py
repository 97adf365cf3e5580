"""What a data set of millions costs: a COCO file of random boxes, read, kept in the cache, and read from there.

Each reading has a process of its own, since memory is measured as its peak.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from resdet.benchmarks.data import private_growth
from resdet.benchmarks.footprint import Memory, MemoryMeter
from resdet.benchmarks.workers import Worker
from resdet.datasets import kept_annotations
from resdet.datasets.annotations import Annotations
from resdet.datasets.coco import read_coco

FULL, OBJECTS, CLASSES, FOLDERS = 1_742_292, 14.6, 365, 51
"""Objects365 v2: images and boxes on each of its training set, classes, folders of images."""


class ScaleRow(NamedTuple):
    """One way to read the annotations."""

    work: str
    images: int
    boxes: int
    file_mib: float
    """Of the text."""
    seconds: float
    own_seconds: float
    """Of the processor: other processes of the machine do not count."""
    gib: float
    """Peak of memory beyond the resting process, mapped files included."""
    loader_mib: float
    """Private memory that a loader process gains while it reads everything."""


COLUMNS = {
    "work                ": "{.work}",
    "images   ": "{.images:,}",
    "boxes     ": "{.boxes:,}",
    "MiB of text": "{.file_mib:.0f}",
    "seconds": "{.seconds:.2f}",
    "of processor": "{.own_seconds:.2f}",
    "GiB   ": "{.gib:.2f}",
    "MiB a loader": "{.loader_mib:.1f}",
}


def scale_costs(images: int) -> Iterator[ScaleRow]:
    """The file read for the first time, then twice from the cache.

    Args:
        images: number of them; the cache is a temporary one, and used whatever the size.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "instances.json")
        boxes = write_coco(path, images)
        size = path.stat().st_size / 2**20
        for work in ("reading the file", "reading what is kept", "the same once more"):
            with Worker(Reading, folder) as process:
                seconds, own = process.built().ask("read")
                memory: Memory = process.ask("memory")
                grown = process.ask("loader")
            yield ScaleRow(work, images, boxes, size, seconds, own, memory.peak - memory.resting, grown)


def at_full_size(row: ScaleRow) -> str:
    """In words, what a row comes to at the size of Objects365 if all grows with the images."""
    times = FULL / row.images
    told = f"{row.own_seconds * times:.0f} s of processor, {row.gib * times:.1f} GiB"
    return f"{row.work}: times {times:.1f} to {FULL:,} images: {told}"


def write_coco(path: Path, images: int, *, seed: int = 0) -> int:
    """Write a COCO file, and beside it empty files of its images.

    Args:
        path: in an empty folder.
        images: number of them, in folders as Objects365 has them.
        seed: of the boxes.

    Returns:
        The number of boxes.
    """
    rng = np.random.default_rng(seed)
    counts = rng.poisson(OBJECTS, size=images)
    first = 1 + np.cumsum(counts) - counts
    names = [f"patch{number % FOLDERS}/objects365_v2_{number:08}.jpg" for number in range(1, images + 1)]
    for folder in {name.partition("/")[0] for name in names}:
        (path.parent / folder).mkdir()
    with open(path, "w") as file:
        rows = (f'{{"id": {i}, "file_name": "{n}", "height": 512, "width": 680}}' for i, n in enumerate(names, 1))
        file.write('{"images": [' + ", ".join(rows) + '], "annotations": [')
        for number, (name, count, start) in enumerate(zip(names, counts.tolist(), first.tolist(), strict=True), 1):
            (path.parent / name).touch()
            boxes = np.concatenate([rng.random((count, 2)) * [500, 380], 2 + rng.random((count, 2)) * 120], axis=1)
            labels = rng.integers(1, CLASSES + 1, count).tolist()
            rows = (
                f'{{"id": {start + k}, "image_id": {number}, "category_id": {label}, "iscrowd": 0, "isfake": 0, '
                f'"bbox": [{x:.4f}, {y:.4f}, {w:.4f}, {h:.4f}], "area": {w * h:.6f}}}'
                for k, (label, (x, y, w, h)) in enumerate(zip(labels, boxes.tolist(), strict=True))
            )
            joined = ", ".join(rows)
            file.write(f", {joined}" if joined and start > 1 else joined)
        classes = ", ".join(f'{{"id": {label}, "name": "class {label}"}}' for label in range(1, CLASSES + 1))
        file.write(f'], "categories": [{classes}]}}')
    return int(counts.sum())


class Reading:
    """A process that reads the set of a folder.

    Args:
        folder: of the file, the images and the cache.
    """

    def __init__(self, folder: str) -> None:
        os.environ["RESDET_CACHE"] = str(Path(folder, "cache"))
        kept_annotations.LEAST_BYTES = 0
        self._folder = folder
        self._annotations: Annotations | None = None

    def read(self) -> tuple[float, float]:
        """Seconds, and those of the processor."""
        self._meter = MemoryMeter()
        started, own = time.perf_counter(), time.process_time()
        self._annotations = read_coco(Path(self._folder, "instances.json"), self._folder)
        return time.perf_counter() - started, time.process_time() - own

    def memory(self) -> Memory:
        """This process's."""
        return self._meter.read()

    def loader(self) -> float:
        """MiB of private memory that a forked process gains over all annotations; 0 where Linux does not tell."""
        annotations = self._annotations
        assert annotations is not None

        def look() -> None:
            for image in range(len(annotations)):
                _ = annotations.files[image], annotations.boxes[annotations.rows(image)].sum()

        return private_growth(look) if Path("/proc/self/smaps_rollup").exists() else 0.0
