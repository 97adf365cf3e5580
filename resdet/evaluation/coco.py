"""Average precision of COCO (Lin et al. 2014): the twelve figures, per class too, and the results file.

The arithmetic is pycocotools' own, or faster-coco-eval's where that is installed; what is added is a check of all that
those would turn into a silent zero or a crash. Only this file speaks xywh and category ids with holes.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from resdet.errors import InputError
from resdet.structures import Detections

logger = logging.getLogger(__name__)

ROW_KEYS = ("image_id", "category_id", "bbox")
RESULT_KEYS = (*ROW_KEYS, "score")
ALL_AREAS, AT_50, MOST_DETECTIONS = 0, 0, 2  # places of "all", IoU 0.5 and 100 detections in pycocotools' parameters


class CocoClass(NamedTuple):
    """One row of the per-class table."""

    name: str
    AP: float | None
    """Mean over IoU 0.50:0.95; None where the class has no ground truth."""
    AP50: float | None
    boxes: int
    """Ground-truth boxes that count, so without crowds."""


class CocoFigures(NamedTuple):
    """The summary of COCO, in its order. Fractions; -1 where no ground truth has that size, as pycocotools says it."""

    AP: float
    AP50: float
    AP75: float
    APs: float
    APm: float
    APl: float
    AR1: float
    AR10: float
    AR100: float
    ARs: float
    ARm: float
    ARl: float
    per_class: tuple[CocoClass, ...]
    """In the order of the ground truth's categories."""


SIZE_BOUNDS = (32.0, 96.0)
"""COCO's: the sides of the squares whose areas divide small, medium and large."""


def evaluate_coco(
    ground_truth: dict,
    results: Sequence[dict] | np.ndarray,
    *,
    backend: str = "auto",
    size_bounds: tuple[float, float] = SIZE_BOUNDS,
) -> CocoFigures:
    """The COCO figures of boxes, the same to the last digit as those of pycocotools.

    Annotation ids play no part (they are renumbered: pycocotools takes an id 0 for "unmatched"), a missing ``iscrowd``
    is 0 and a missing ``area`` is the box's. The arguments are not changed. A class whose only box is found scores
    1 - 2e-16, as in pycocotools, which divides by the count plus the spacing of floats.

    Args:
        ground_truth: a COCO annotation file as a dictionary.
        results: rows ``{image_id, category_id, bbox: [x, y, w, h], score}``, or an array (D, 7) of
            ``image_id, x, y, w, h, score, category_id``. It may be empty: figures are then 0.
        backend: "pycocotools", "faster" (faster-coco-eval), or "auto": faster where it is installed.
        size_bounds: sides in pixels that divide small, medium and large.

    Raises:
        InputError: for a malformed row, an image or category id that the ground truth lacks, a score that is not
            finite, or a ground truth without a box to find.
    """
    coco, evaluator = _load_backend(backend)
    truth = _check_ground_truth(ground_truth)
    images, names = {image["id"] for image in truth["images"]}, {c["id"]: c["name"] for c in truth["categories"]}
    rows = [] if len(results) == 0 else _rows_of(results) if isinstance(results, np.ndarray) else results
    _check_rows("COCO results", rows, RESULT_KEYS)
    _check_ids("COCO results", rows, images, names)
    found = [
        {**plain, "area": plain["bbox"][2] * plain["bbox"][3], "iscrowd": 0, "id": number, "score": float(row["score"])}
        for number, (row, plain) in enumerate(zip(rows, map(_plain_row, rows), strict=True), start=1)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        sides = [coco(), coco()]
        for side, annotations in zip(sides, (truth["annotations"], found), strict=True):
            side.dataset = {**truth, "annotations": annotations}
            side.createIndex()
        evaluation = evaluator(*sides, "bbox")
        small, large = (side**2 for side in size_bounds)
        most = evaluation.params.areaRng[0][1]
        evaluation.params.areaRng = [[0, most], [0, small], [small, large], [large, most]]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    boxes = dict.fromkeys(names, 0)
    for row in truth["annotations"]:
        boxes[row["category_id"]] += not row["iscrowd"]
    precision = evaluation.eval["precision"]  # (IoU, recall, class, area, detections), classes by increasing id
    per_class = {}
    for place, key in enumerate(sorted(names)):
        curves = precision[:, :, place, ALL_AREAS, MOST_DETECTIONS]
        per_class[key] = CocoClass(names[key], _mean(curves), _mean(curves[AT_50]), boxes[key])
    return CocoFigures(*(float(figure) for figure in evaluation.stats[:12]), tuple(per_class[key] for key in names))


def load_results(path: str | Path) -> list[dict]:
    """The rows of a COCO results file.

    A ground-truth file (an object with ``annotations``) is taken too: each of its annotations that is not a crowd
    and has an area becomes a detection of score 1, so that a data set can be scored against itself. In a results file
    proper, a row without a score is an error.

    Raises:
        InputError: with the path and the row, for anything that is not such a file.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise InputError(path, found=error.strerror or error, needed="a COCO results file") from error
    except ValueError as error:
        raise InputError(path, found=f"broken JSON: {error}", needed="a COCO results file") from error
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        _check_rows(path, content["annotations"], ROW_KEYS)
        rows = [row for row in content["annotations"] if not row.get("iscrowd")]
        sound = [{**_plain_row(row), "score": 1.0} for row in rows if row["bbox"][2] > 0 and row["bbox"][3] > 0]
        if len(sound) < len(rows):
            logger.warning("%s: %d boxes without area are left out", path, len(rows) - len(sound))
        return sound
    if not isinstance(content, list):
        keys = f" with keys {', '.join(content) or '(none)'}" if isinstance(content, dict) else ""
        needed = f"a list of objects with {', '.join(RESULT_KEYS)}, or a COCO annotation file"
        raise InputError(path, found=f"a JSON {type(content).__name__}{keys}", needed=needed)
    _check_rows(path, content, RESULT_KEYS)
    return content


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
    labels = labels.astype(np.int64)
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(category_ids):
        wrong = labels.max() if labels.min() >= 0 else labels.min()
        needed = f"labels in [0, {len(category_ids)}): a model for the classes of this data set"
        raise InputError(f"detections of image {image_id}", found=f"label {wrong}", needed=needed)
    boxes = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    columns = zip(np.asarray(category_ids)[labels].tolist(), boxes.tolist(), scores.tolist(), strict=True)
    return [{"image_id": int(image_id), "category_id": c, "bbox": box, "score": score} for c, box, score in columns]


def _load_backend(backend: str) -> tuple[type, type]:
    """The index class and the evaluation class; imported here because neither is needed to train."""
    if backend not in ("auto", "faster", "pycocotools"):
        raise InputError("evaluation backend", found=repr(backend), needed="auto, faster or pycocotools")
    if backend != "pycocotools":
        try:
            from faster_coco_eval import COCO, COCOeval_faster

            return COCO, COCOeval_faster
        except ModuleNotFoundError as error:
            if backend == "faster":
                needed = 'pip install "resdet[fast-eval]", or backend "auto"'
                raise InputError("evaluation backend faster", found=str(error), needed=needed) from error
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return COCO, COCOeval


def _mean(precision: np.ndarray) -> float | None:
    """Mean of what is defined (pycocotools writes -1 for a class without ground truth)."""
    defined = precision[precision > -1]
    return float(defined.mean()) if defined.size else None


def _rows_of(table: np.ndarray) -> list[dict]:
    if table.ndim != 2 or table.shape[1] != 7:
        needed = "shape (D, 7): image_id, x, y, w, h, score, category_id"
        raise InputError("COCO results", found=f"an array of shape {table.shape}", needed=needed)
    return [dict(image_id=r[0], bbox=r[1:5], score=r[5], category_id=r[6]) for r in table.tolist()]


def _plain_row(row: dict) -> dict:
    return {
        "image_id": int(row["image_id"]),
        "category_id": int(row["category_id"]),
        "bbox": [float(side) for side in row["bbox"]],
    }


def _check_ground_truth(ground_truth: dict) -> dict:
    """Its images, categories and annotations, checked and copied, with ids 1..B."""
    where = "COCO ground truth"
    keys = ("images", "annotations", "categories")
    missing = [key for key in keys if not isinstance(ground_truth.get(key), list)]
    if missing:
        raise InputError(where, found=f"no list {', '.join(missing)}", needed=f"lists {', '.join(keys)}")
    for key, fields in (("images", ("id",)), ("categories", ("id", "name"))):
        seen = set()
        for number, row in enumerate(ground_truth[key]):
            if not isinstance(row, dict) or any(field not in row for field in fields) or not _is_integer(row["id"]):
                needed = f"an object with an integer id{' and a name' if 'name' in fields else ''}"
                raise InputError(f"{where}, {key}[{number}]", found=row, needed=needed)
            if row["id"] in seen:
                raise InputError(f"{where}, {key}[{number}]", found=f"id {row['id']} again", needed="unique ids")
            seen.add(row["id"])
    rows = ground_truth["annotations"]
    _check_rows(f"{where}, annotations", rows, ROW_KEYS)
    if all(row.get("iscrowd") for row in rows):
        raise InputError(where, found=f"{len(rows)} annotations, none but crowds", needed="at least one box to find")
    categories = [{"id": int(row["id"]), "name": row["name"]} for row in ground_truth["categories"]]
    images = [{"id": int(row["id"])} for row in ground_truth["images"]]
    _check_ids(f"{where}, annotations", rows, {i["id"] for i in images}, {c["id"]: c["name"] for c in categories})
    annotations = []
    for number, row in enumerate(rows, start=1):
        plain = _plain_row(row)
        area = plain["bbox"][2] * plain["bbox"][3] if row.get("area") is None else row["area"]
        annotations.append({**plain, "area": area, "iscrowd": int(bool(row.get("iscrowd"))), "id": number})
    return {"images": images, "categories": categories, "annotations": annotations}


def _check_rows(where: object, rows: Sequence[dict], keys: tuple[str, ...]) -> None:
    for number, row in enumerate(rows):
        problem = _problem_of(row, keys)
        if problem:
            needed = f"{', '.join(keys)}; integer ids, a bbox [x, y, width, height]"
            needed += " and a finite score" if "score" in keys else ""
            raise InputError(f"{where}, row {number}", found=problem, needed=needed)


def _problem_of(row: object, keys: tuple[str, ...]) -> str | None:
    if not isinstance(row, dict):
        return f"{row!r}, not an object"
    missing = [key for key in keys if key not in row]
    if missing:
        return f"no {', '.join(missing)}, only {', '.join(map(str, row)) or 'an empty object'}"
    wrong = [key for key in ("image_id", "category_id") if not _is_integer(row[key])]
    if wrong:
        return f"{wrong[0]} {row[wrong[0]]!r}"
    box = row["bbox"]
    if not isinstance(box, list | tuple | np.ndarray) or len(box) != 4 or not all(map(_is_finite, box)):
        return f"bbox {box!r}"
    if "score" in keys:
        if box[2] < 0 or box[3] < 0:
            return f"bbox {box!r} of negative size"
        return None if _is_finite(row["score"]) else f"score {row['score']!r}"
    if row.get("iscrowd") not in (None, 0, 1):
        return f"iscrowd {row['iscrowd']!r}"
    return None if row.get("area") is None or _is_finite(row["area"]) else f"area {row['area']!r}"


def _is_integer(value: object) -> bool:
    """Whole floats count: writers that go through an array make them."""
    if isinstance(value, float):
        return value.is_integer()
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float | np.number) and math.isfinite(value)


def _check_ids(where: str, rows: Sequence[dict], images: set[int], names: dict[int, str]) -> None:
    known_classes = [f"{key} ({names[key]})" for key in sorted(names)]
    for key, known, listing in (("image_id", images, sorted(images)), ("category_id", names, known_classes)):
        unknown = [number for number, row in enumerate(rows) if row[key] not in known]
        if unknown:
            found = f"{key} {rows[unknown[0]][key]} (row {unknown[0]}), which the ground truth lacks; "
            found += f"{len(unknown)} of {len(rows)} rows are like this"
            raise InputError(where, found=found, needed=f"one of: {_listing(listing)}")


def _listing(items: Iterable[object], limit: int = 30) -> str:
    items = [str(item) for item in items]
    return ", ".join(items[:limit]) + (f", and {len(items) - limit} more" if len(items) > limit else "")
