"""How much of what decoding alone allows a core the loader delivers."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from resdet.datasets.annotations import Annotations, FileNames
from resdet.datasets.detection import DetectionDataset
from resdet.datasets.loading import collate
from resdet.datasets.transforms import augmentation

OBJECTS = 7
"""Boxes on an image; COCO has 7.3 on average."""


class DecodeRow(NamedTuple):
    """One way to get images."""

    work: str
    images_per_second: float
    """Of one core: the time of this process alone, median of the runs."""
    share: float
    """Of what the fastest decoder alone does, median of the ratios of neighbouring runs."""


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
        contents, large_contents = (
            [np.fromfile(data.path(i), dtype=np.uint8) for i in range(len(data))] for data in (small, large)
        )
        plain, flipped = DetectionDataset(small), DetectionDataset(small, transform=augmentation())
        whole, reduced = DetectionDataset(large), DetectionDataset(large, least_side=least_side)
        rows = _rows(
            {
                "decoding alone": lambda: [_decode(content) for content in contents],
                "decoding by Pillow": lambda: [np.asarray(Image.open(small.path(i))) for i in range(images)],
                "loader": lambda: [collate([plain[i]]) for i in range(images)],
                "loader with flips": lambda: [collate([flipped[i, i]]) for i in range(images)],
            },
            images,
            runs,
        )
        return rows + _rows(
            {
                "decoding alone, large": lambda: [_decode(content) for content in large_contents],
                "loader, large": lambda: [collate([whole[i]]) for i in range(len(large))],
                "loader reduced, large": lambda: [collate([reduced[i]]) for i in range(len(large))],
            },
            len(large),
            runs,
        )


def _decode(content: np.ndarray) -> None:
    cv2.imdecode(content, cv2.IMREAD_COLOR_RGB)


def _rows(works: dict[str, Callable[[], object]], images: int, runs: int) -> list[DecodeRow]:
    """The first work is the measure of the others."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for run in range(runs + 1):
        for name, work in works.items():
            started = time.process_time()
            work()
            if run:  # the first warms caches
                seconds[name].append(time.process_time() - started)
    first = next(iter(seconds.values()))
    return [
        DecodeRow(
            name,
            images / statistics.median(values),
            statistics.median(a / b for a, b in zip(first, values, strict=True)),
        )
        for name, values in seconds.items()
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
    zeros = np.zeros(len(boxes), dtype=np.int64)
    return Annotations(
        source="synthetic",
        image_root=folder,
        classes=("object",),
        category_ids=np.ones(1, dtype=np.int64),
        image_ids=np.arange(count),
        files=FileNames(names),
        hw=np.full((count, 2), hw, dtype=np.int32),
        first=OBJECTS * np.arange(count + 1),
        boxes=boxes,
        labels=zeros,
        ignore=zeros > 0,
        areas=boxes[:, 2:].prod(1),
        box_ids=1 + np.arange(len(boxes)),
    )
