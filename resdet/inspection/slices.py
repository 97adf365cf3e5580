"""AP of parts of the objects: by size, by shape, by how close others stand.

As COCO does it for sizes: objects of the other parts are ignored, and so are detections that find none and would belong
to another part themselves.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from resdet.evaluation.coco import SIZE_BOUNDS
from resdet.evaluation.coco_curves import CocoFound, CocoObjects, coco_curves
from resdet.inspection.errors import BACKGROUND, near_pairs

SHAPES = (0.5, 2.0)
"""Widths over heights that divide tall, ordinary and wide."""
NEIGHBOURS = (0.5, 2.5)
"""Numbers of other objects nearby that divide none, few and many."""
PARTS = {
    "size": ("small: area below 32²", "medium", "large: area above 96²"),
    "shape": ("tall: over twice as high as wide", "ordinary", "wide: over twice as wide as high"),
    "crowding": ("alone", "1 or 2 others overlap it", "3 or more others overlap it"),
}


class Slice(NamedTuple):
    """A part of the objects. Figures are means over the classes that have any there; None where none has."""

    by: str
    part: str
    objects: int
    AP: float | None
    AP50: float | None
    recall: float | None
    """COCO's AR of 100 detections, over the IoU thresholds."""


def sliced(objects: CocoObjects, found: CocoFound, *, num_classes: int) -> list[Slice]:
    """AP of each part of :data:`PARTS`.

    Args:
        objects: ground truth.
        found: detections.
        num_classes: K.
    """
    areas, sides = found.boxes[:, 2:].prod(1), (SIZE_BOUNDS[0] ** 2, SIZE_BOUNDS[1] ** 2)
    measures = {
        "size": (objects.areas, areas, sides),
        "shape": (_shapes(objects.boxes), _shapes(found.boxes), SHAPES),
        "crowding": (*_neighbours(objects, found), NEIGHBOURS),
    }
    rows = []
    for by, (of_objects, of_found, bounds) in measures.items():
        measured = objects._replace(areas=of_objects)
        precision, recall = coco_curves(measured, found, num_classes=num_classes, bounds=bounds, measures=of_found)
        low, high = (0.0, *bounds), (*bounds, np.inf)
        for number, part in enumerate(PARTS[by]):
            inside = (of_objects >= low[number]) & (of_objects <= high[number]) & ~objects.crowd
            curves = precision[..., number + 1]
            figures = [_mean(curves), _mean(curves[0]), _mean(recall[:, :, number + 1, -1])]
            rows.append(Slice(by, part, int(inside.sum()), *figures))
    return rows


def _shapes(boxes: np.ndarray) -> np.ndarray:
    return boxes[:, 2] / np.maximum(boxes[:, 3], np.finfo(float).tiny ** 0.25)


def _neighbours(objects: CocoObjects, found: CocoFound) -> tuple[np.ndarray, np.ndarray]:
    """How many other objects overlap each object; and each detection, besides the one that it may mean."""
    everyone = CocoFound(objects.boxes, np.zeros(len(objects.labels)), objects.labels, objects.images)
    counts = []
    for boxes in (everyone, found):
        rows = near_pairs(objects, boxes, least=BACKGROUND)[0]
        counts.append(np.maximum(np.bincount(rows, minlength=len(boxes.scores)) - 1, 0).astype(float))
    return counts[0], counts[1]


def _mean(values: np.ndarray) -> float | None:
    known = values[values > -1]
    return float(known.mean()) if known.size else None
