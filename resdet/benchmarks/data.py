"""What loading costs: how much of what decoding allows the loader delivers, and what annotations add to a process."""

from __future__ import annotations

import gc
import multiprocessing
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from resdet.benchmarks.clock import in_turns, own_seconds
from resdet.datasets.annotations import Annotations
from resdet.datasets.detection import DetectionDataset
from resdet.datasets.file_names import FileNames
from resdet.datasets.loading import collate
from resdet.datasets.transforms import augmentation

OBJECTS = 7
"""Boxes on an image; COCO has 7.3 on average."""
COCO_IMAGES, COCO_BOXES = 118_287, 860_001
"""Of instances_train2017.json."""


class DecodeRow(NamedTuple):
    """One way to get images."""

    work: str
    images_per_second: float
    """Of one core: the time of this process alone, median of the runs."""
    share: float
    """Of what the fastest decoder alone does, median of the ratios of neighbouring runs."""


COLUMNS = {
    "on one core                 ": "{.work}",
    "images/s ": "{.images_per_second:.1f}",
    "share  ": "{.share:.2f}",
}


def decode_share(
    *, hw: tuple[int, int] = (480, 640), images: int = 64, runs: int = 7, least_side: int = 800
) -> list[DecodeRow]:
    """Decoding alone (OpenCV's, the fastest, and Pillow's), the detection loader, and large files whole and reduced.

    Args:
        hw: size of the photographs, which are made for this and compress like real ones; the large ones are four times
            as long and as wide.
        images: number of them; a quarter as many large ones.
        runs: timed, in turns.
        least_side: as the loader decodes the large ones (see ``DetectionDataset``).
    """
    with tempfile.TemporaryDirectory() as folder:
        small, large = _photographs(folder, hw, images), _photographs(folder, (4 * hw[0], 4 * hw[1]), images // 4)
        flipped = DetectionDataset(small, transform=augmentation())
        whole, reduced = DetectionDataset(large), DetectionDataset(large, least_side=least_side)
        works = {
            "decoding alone": _decoder(small),
            "decoding by Pillow": lambda i: np.asarray(Image.open(small.path(i))),
            "loader": _loader(DetectionDataset(small)),
            "loader with flips": lambda i: collate([flipped[i, i]]),
        }
        large_works = {
            "decoding alone, large": _decoder(large),
            "loader, large": _loader(whole),
            "loader reduced, large": _loader(reduced),
        }
        return [*_rows(works, images, runs), *_rows(large_works, len(large), runs)]


def _decoder(data: Annotations) -> Callable[[int], object]:
    contents = [np.fromfile(data.path(i), dtype=np.uint8) for i in range(len(data))]
    return lambda i: cv2.imdecode(contents[i], cv2.IMREAD_COLOR_RGB)


def _loader(data: DetectionDataset) -> Callable[[int], object]:
    return lambda i: collate([data[i]])


def _rows(works: dict[str, Callable[[int], object]], images: int, runs: int) -> list[DecodeRow]:
    """The first work is the measure of the others."""

    def measure(work: Callable[[int], object]) -> float:
        return own_seconds(lambda: [work(i) for i in range(images)])

    seconds = in_turns(*(partial(measure, work) for work in works.values()), runs=runs + 1)
    seconds = [values[1:] for values in seconds]  # the first warms caches
    return [
        DecodeRow(
            name,
            images / statistics.median(values),
            statistics.median(a / b for a, b in zip(seconds[0], values, strict=True)),
        )
        for name, values in zip(works, seconds, strict=True)
    ]


def _photographs(folder: str, hw: tuple[int, int], count: int) -> Annotations:
    """JPEGs of about four bits a pixel, as COCO's, with boxes on them."""
    rng = np.random.default_rng(0)
    names = [f"{hw[0]}_{number}.jpg" for number in range(count)]
    for name in names:
        layers = [
            cv2.resize(rng.normal(128, 40, (-(-hw[0] // step), -(-hw[1] // step), 3)).astype(np.float32), hw[::-1])
            for step in (2, 16, 128)
        ]
        Image.fromarray(np.mean(layers, axis=0).clip(0, 255).astype(np.uint8)).save(Path(folder, name), quality=97)
    boxes = np.tile(np.array([0, 0, hw[1] / 2, hw[0] / 2], dtype=np.float32), (count * OBJECTS, 1))
    return _annotations(folder, names, hw, OBJECTS * np.arange(count + 1), boxes)


def _annotations(
    folder: str, names: list[str], hw: tuple[int, int], first: np.ndarray, boxes: np.ndarray
) -> Annotations:
    """Boxes of one class on images of one size."""
    zeros = np.zeros(len(boxes), dtype=np.int64)
    return Annotations(
        source="synthetic",
        image_root=folder,
        classes=("object",),
        category_ids=np.ones(1, dtype=np.int64),
        image_ids=np.arange(len(names)),
        files=FileNames(names),
        hw=np.full((len(names), 2), hw, dtype=np.int32),
        first=first.astype(np.int64),
        boxes=boxes,
        labels=zeros,
        ignore=zeros > 0,
        areas=boxes[:, 2:].prod(1),
        box_ids=1 + np.arange(len(boxes)),
    )


def worker_memory() -> tuple[float, float, float]:
    """What annotations the size of COCO's training set cost a loader process that reads all of them. Linux only.

    Returns:
        MiB of the arrays themselves; MiB of private memory that a forked process adds over the arrays, and over the
        same annotations as a list of dictionaries.
    """
    rng = np.random.default_rng(0)
    corners = rng.random((COCO_BOXES, 4), dtype=np.float32)
    first = np.concatenate([[0], np.sort(rng.integers(0, COCO_BOXES, COCO_IMAGES - 1)), [COCO_BOXES]])
    annotations = _annotations("", [f"{number:012}.jpg" for number in range(COCO_IMAGES)], (480, 480), first, corners)
    images = range(COCO_IMAGES)
    listed = [
        {
            "file": annotations.files[i],
            "boxes": [{"bbox": box, "label": 0} for box in corners[annotations.rows(i)].tolist()],
        }
        for i in images
    ]
    arrays = sum(a.nbytes for a in vars(annotations).values() if isinstance(a, np.ndarray))
    names = (16 + 8) * COCO_IMAGES  # bytes, and where each begins

    def read_arrays() -> None:
        for i in images:
            _ = annotations.files[i], annotations.boxes[annotations.rows(i)].sum()

    def read_lists() -> None:
        for entry in listed:
            _ = entry["file"], sum(box["bbox"][0] for box in entry["boxes"])

    return (arrays + names) / 2**20, private_growth(read_arrays), private_growth(read_lists)


def private_growth(read: Callable[[], None]) -> float:
    """MiB of private memory that a forked process gains while it reads."""
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
