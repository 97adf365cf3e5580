"""What the annotations of a large data set cost a loader process. Linux only."""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import numpy as np

from resdet.datasets.annotations import Annotations, FileNames


def worker_memory() -> tuple[float, float, float]:
    """What annotations the size of COCO's training set cost a loader process that reads all of them.

    Returns:
        MiB of the arrays themselves; MiB of private memory that a forked process adds over the arrays, and over the
        same annotations as a list of dictionaries. Linux only.
    """
    images, boxes = 118_287, 860_001  # of instances_train2017.json
    generator = np.random.default_rng(0)
    corners = generator.random((boxes, 4), dtype=np.float32)
    first = np.concatenate([[0], np.sort(generator.integers(0, boxes, images - 1)), [boxes]])
    annotations = Annotations(
        source="synthetic",
        image_root="",
        classes=("object",),
        category_ids=np.ones(1, dtype=np.int64),
        image_ids=np.arange(images),
        files=FileNames([f"{number:012}.jpg" for number in range(images)]),
        hw=np.full((images, 2), 480, dtype=np.int32),
        first=first.astype(np.int64),
        boxes=corners,
        labels=np.zeros(boxes, dtype=np.int64),
        ignore=np.zeros(boxes, dtype=bool),
        areas=corners[:, 0].copy(),
        box_ids=np.arange(1, boxes + 1),
    )
    listed = [
        {
            "file": annotations.files[i],
            "boxes": [{"bbox": box, "label": 0} for box in corners[annotations.rows(i)].tolist()],
        }
        for i in range(images)
    ]
    size = sum(a.nbytes for a in vars(annotations).values() if isinstance(a, np.ndarray)) + 16 * images + 8 * images

    def read_arrays() -> None:
        for i in range(images):
            _ = annotations.files[i], annotations.boxes[annotations.rows(i)].sum()

    def read_lists() -> None:
        for entry in listed:
            _ = entry["file"], sum(box["bbox"][0] for box in entry["boxes"])

    return size / 2**20, _private_growth_mib(read_arrays), _private_growth_mib(read_lists)


def _private_growth_mib(read: Callable[[], None]) -> float:
    """Private memory that a forked process gains while it reads."""
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def measure() -> None:
        gc.disable()
        before = _private_mib()
        read()
        sender.send(_private_mib() - before)

    process = multiprocessing.get_context("fork").Process(target=measure)
    process.start()
    grown = receiver.recv()
    process.join()
    return grown


def _private_mib() -> float:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024
