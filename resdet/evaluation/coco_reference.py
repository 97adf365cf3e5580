"""COCO's curves by pycocotools, behind the interface of :mod:`resdet.evaluation.coco_curves`.

It is the reference: the tests and ``tools/benchmark.py eval`` hold our curves against it.
"""

from __future__ import annotations

import contextlib
import io

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from resdet.evaluation.coco_curves import DETECTIONS, MOST, CocoFound
from resdet.evaluation.coco_rows import CocoTruth


def pycocotools_curves(
    truth: CocoTruth, found: CocoFound, *, bounds: tuple[float, float], most: int = MOST
) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`resdet.evaluation.coco_curves.coco_curves`.

    Args:
        truth: ground truth.
        found: detections.
        bounds: areas in pixels that divide small, medium and large.
        most: detections of an image and class that are looked at.
    """
    objects, category_ids = truth.objects, np.array(sorted(truth.names))
    areas = found.boxes[:, 2:].prod(1)
    sides = []
    with contextlib.redirect_stdout(io.StringIO()):
        for boxes, area, crowd, images, labels, more in (
            (objects.boxes, objects.areas, objects.crowd, objects.images, objects.labels, {}),
            (found.boxes, areas, areas < 0, found.images, found.labels, {"score": found.scores.tolist()}),
        ):
            columns = {
                "id": range(1, len(boxes) + 1),
                "image_id": truth.image_ids[images].tolist(),
                "category_id": category_ids[labels].tolist(),
                "bbox": boxes.tolist(),
                "area": area.tolist(),
                "iscrowd": crowd.astype(int).tolist(),
                **more,
            }
            side = COCO()
            side.dataset = {
                "images": [{"id": i} for i in truth.image_ids.tolist()],
                "categories": [{"id": i, "name": truth.names[i]} for i in category_ids.tolist()],
                "annotations": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)],
            }
            side.createIndex()
            sides.append(side)
        evaluation = COCOeval(*sides, "bbox")
        largest = evaluation.params.areaRng[0][1]
        evaluation.params.areaRng = [[0, largest], [0, bounds[0]], list(bounds), [bounds[1], largest]]
        evaluation.params.maxDets = [*DETECTIONS, most]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][..., -1], evaluation.eval["recall"]
