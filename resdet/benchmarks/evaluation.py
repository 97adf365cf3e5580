"""COCO's evaluation beside the libraries': same ground truth, same detections; seconds, and how far figures differ."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np

from resdet.benchmarks.clock import own_seconds
from resdet.evaluation.coco import CocoFigures, evaluate_coco
from resdet.evaluation.coco_rows import read_truth

OBJECTS = 7.3
"""On an image of COCO's training set, on average."""
CROWDS = 0.012
"""Share of its boxes."""


class EvaluationRow(NamedTuple):
    """One way to the twelve figures."""

    backend: str
    seconds: float
    """Of this process on a core, from arrays to figures: other processes of the machine do not count."""
    ratio: float
    """Times faster than pycocotools."""
    difference: float
    """Largest of any figure, of the twelve and of the classes, from ours."""


COLUMNS = {
    "5,000 images x 100 detections ": "{.backend}",
    "seconds  ": "{.seconds:.2f}",
    "times faster ": "{.ratio:.1f}",
    "difference ": "{.difference:.1e}",
}


def time_evaluation(*, images: int = 5000, detections: int = 100, classes: int = 80) -> list[EvaluationRow]:
    """Ours, and pycocotools (over a minute at the size of COCO's validation set).

    Args:
        images: number of images.
        detections: on each.
        classes: number of classes.
    """
    content, table = evaluation_case(images, detections, classes)
    truth = read_truth(content)
    figures: dict[str, CocoFigures] = {}

    def score(backend: str) -> None:
        figures[backend] = evaluate_coco(truth, table, backend=backend)

    seconds = {backend: own_seconds(partial(score, backend)) for backend in ("arrays", "pycocotools")}
    slowest, ours = seconds["pycocotools"], _numbers(figures["arrays"])
    return [
        EvaluationRow(name, spent, slowest / spent, float(np.abs(_numbers(figures[name]) - ours).max()))
        for name, spent in seconds.items()
    ]


def evaluation_case(images: int, detections: int, classes: int) -> tuple[dict, np.ndarray]:
    """Random ground truth as a COCO dictionary, and detections (D, 7).

    Half of the detections lie near an object, and a fifth of those have another class.
    """
    rng = np.random.default_rng(0)
    counts = rng.poisson(OBJECTS, size=images).clip(min=1)
    image = np.repeat(np.arange(images), counts)
    sides = np.exp(rng.normal(4, 1, size=(len(image), 2))).clip(4, 400)
    boxes = np.concatenate([rng.random((len(image), 2)) * [512, 384], sides], axis=1)
    labels, crowd = rng.integers(0, classes, len(image)), rng.random(len(image)) < CROWDS
    rows = zip(image.tolist(), labels.tolist(), boxes.tolist(), crowd.tolist(), strict=True)
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(images)],
        "categories": [{"id": k, "name": str(k)} for k in range(classes)],
        "annotations": [{"image_id": i, "category_id": k, "bbox": box, "iscrowd": c} for i, k, box, c in rows],
    }
    owner = np.repeat(np.arange(images), detections)
    first = np.cumsum(counts) - counts
    chosen = first[owner] + (rng.random(len(owner)) * counts[owner]).astype(int)
    near = rng.random(len(owner)) < 0.5
    shifted = boxes[chosen] + rng.normal(0, 0.1, (len(owner), 4)) * np.tile(sides[chosen], 2)
    free = np.concatenate([rng.random((len(owner), 2)) * 400, 20 + 200 * rng.random((len(owner), 2))], axis=1)
    found = np.where(near[:, None], shifted, free)
    found[:, 2:] = found[:, 2:].clip(min=1)
    names = np.where(near & (rng.random(len(owner)) < 0.8), labels[chosen], rng.integers(0, classes, len(owner)))
    scores = rng.random(len(owner)) ** np.where(near, 1, 3)
    return content, np.column_stack([owner, found, scores, names])


def _numbers(figures: CocoFigures) -> np.ndarray:
    per_class = [value for row in figures.per_class for value in (row.AP, row.AP50) if value is not None]
    return np.array([*figures[:12], *per_class])
