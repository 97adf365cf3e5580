"""Detections as rows of a COCO results file."""

from __future__ import annotations

import numpy as np

from resdet.errors import InputError
from resdet.evaluation.coco_curves import CocoFound
from resdet.evaluation.coco_rows import RESULT_KEYS, CocoTruth
from resdet.structures import Detections


def coco_results(detections: Detections, image_id: int, category_ids: np.ndarray) -> list[dict]:
    """The detections of one image as JSON-ready rows of a COCO results file.

    Args:
        detections: D boxes xyxy, frame: original.
        image_id: the file's id of the image.
        category_ids: (K,) the file's id of each label.

    Raises:
        InputError: for a label outside [0, K).
    """
    boxes, scores, labels = (field.detach().cpu().double().numpy() for field in detections)
    if len(wrong := labels[(labels < 0) | (labels >= len(category_ids))]):
        needed = f"labels in [0, {len(category_ids)}): a model for the classes of this data set"
        raise InputError(f"detections of image {image_id}", found=f"label {int(wrong[0])}", needed=needed)
    categories = np.asarray(category_ids)[labels.astype(np.int64)]
    rows = zip(categories.tolist(), to_xywh(boxes).tolist(), scores.tolist(), strict=True)
    return [{"image_id": image_id, "category_id": c, "bbox": box, "score": score} for c, box, score in rows]


def found_rows(found: CocoFound, truth: CocoTruth) -> list[dict]:
    """Detections as JSON-ready rows of a COCO results file."""
    images, categories = truth.image_ids[found.images], np.array(sorted(truth.names))[found.labels]
    columns = zip(images.tolist(), categories.tolist(), found.boxes.tolist(), found.scores.tolist(), strict=True)
    return [dict(zip(RESULT_KEYS, row, strict=True)) for row in columns]


def to_xywh(boxes: np.ndarray) -> np.ndarray:
    """(D, 4) corners as x, y, width, height."""
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
