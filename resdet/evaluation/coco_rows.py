"""COCO's files (annotations and results) as arrays, and back: all that has to be sound before anything is scored.

pycocotools turns most of what is refused here into a silent zero or a crash. Only this file speaks category ids with
holes.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resdet.datasets.annotations import Annotations
from resdet.errors import InputError, listed
from resdet.evaluation.coco_curves import CocoFound, CocoObjects

logger = logging.getLogger(__name__)

ROW_KEYS = ("image_id", "category_id", "bbox")
RESULT_KEYS = (*ROW_KEYS, "score")
LARGEST_ID = 2**53
"""Results travel as float64 tables, which hold whole numbers up to this."""


class CocoTruth(NamedTuple):
    """A ground truth, checked, in arrays: made once and kept by whoever scores many times."""

    image_ids: np.ndarray
    """(N,) int64, rising."""
    names: dict[int, str]
    """K names by category id, in the order of the file."""
    objects: CocoObjects
    """Places among the rising ids of images and categories in place of the ids."""


def truth_of(annotations: Annotations) -> CocoTruth:
    """The ground truth of a data set, its boxes as they are written.

    Raises:
        InputError: there is no box to find.
    """
    ignore = annotations.written.ignore
    if ignore.all():
        found = f"{len(ignore)} boxes, all of them crowds or difficult" if len(ignore) else "no boxes"
        needed = "at least one box to find"
        needed += (
            "" if len(ignore) else "; of a test set without them eval.py --save-detections FILE writes the results"
        )
        raise InputError(annotations.source, found=found, needed=needed)
    return arrays_of(annotations)


def arrays_of(annotations: Annotations) -> CocoTruth:
    """:func:`truth_of` a data set that may have no box."""
    written = annotations.written
    names = dict(zip(annotations.category_ids.tolist(), annotations.classes, strict=True))
    labels = places(annotations.category_ids)[written.labels]
    images = places(annotations.image_ids)[written.images]
    objects = CocoObjects(written.boxes, written.areas, written.ignore, labels, images)
    return CocoTruth(np.sort(annotations.image_ids), names, objects)


def read_truth(ground_truth: dict) -> CocoTruth:
    """Arrays of a COCO annotation file.

    Annotation ids play no part (pycocotools takes an id 0 for "unmatched"), a missing ``iscrowd`` is 0 and a missing
    ``area`` is the box's.

    Raises:
        InputError: for a malformed row, an id that no image or category has, or no box to find.
    """
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
    crowd = np.array([bool(row.get("iscrowd")) for row in rows], dtype=bool)
    if crowd.all():
        raise InputError(where, found=f"{len(rows)} annotations, none but crowds", needed="at least one box to find")
    names = {int(row["id"]): row["name"] for row in ground_truth["categories"]}
    image_ids = np.sort(np.array([row["id"] for row in ground_truth["images"]], dtype=np.int64))
    images, categories, boxes = _columns(rows)
    areas = [row.get("area") for row in rows]
    areas = [w * h if area is None else area for area, (w, h) in zip(areas, boxes[:, 2:].tolist(), strict=True)]
    labels, images = _places(f"{where}, annotations", images, categories, image_ids=image_ids, names=names)
    return CocoTruth(image_ids, names, CocoObjects(boxes, np.array(areas, dtype=np.float64), crowd, labels, images))


def read_found(results: Sequence[dict] | np.ndarray, truth: CocoTruth) -> CocoFound:
    """Arrays of detections.

    Args:
        results: rows ``{image_id, category_id, bbox: [x, y, w, h], score}``, or an array (D, 7) of
            ``image_id, x, y, w, h, score, category_id``. It may be empty.
        truth: what they are to be scored on.

    Raises:
        InputError: for a malformed row, an image or category id that the ground truth lacks, or a score that is not
            finite.
    """
    where = "COCO results"
    if len(results) == 0:
        results = np.zeros((0, 7))
    if isinstance(results, np.ndarray):
        if results.ndim != 2 or results.shape[1] != 7:
            needed = "shape (D, 7): image_id, x, y, w, h, score, category_id"
            raise InputError(where, found=f"an array of shape {results.shape}", needed=needed)
        table = results.astype(np.float64)
        sound = np.isfinite(table).all() and (table[:, 3:5] >= 0).all() and not np.any(table[:, [0, 6]] % 1)
        if not sound:
            rows = ({"image_id": r[0], "category_id": r[6], "bbox": r[1:5], "score": r[5]} for r in table.tolist())
            _check_rows(where, rows, RESULT_KEYS)
        images, categories, boxes, scores = table[:, 0], table[:, 6], table[:, 1:5], table[:, 5]
        images, categories = images.astype(np.int64), categories.astype(np.int64)
    else:
        plain = _is_plain(results)  # a check of each row costs more than the evaluation
        if not plain:
            _check_rows(where, results, RESULT_KEYS)
        images, categories, boxes = _columns(results)
        scores = np.array([row["score"] for row in results], dtype=np.float64)
        if plain and not (np.isfinite(boxes).all() and np.isfinite(scores).all() and (boxes[:, 2:] >= 0).all()):
            _check_rows(where, results, RESULT_KEYS)
    labels, images = _places(where, images, categories, image_ids=truth.image_ids, names=truth.names)
    return CocoFound(boxes, scores, labels, images)


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
    if not _is_plain(content):
        _check_rows(path, content, RESULT_KEYS)
    return content


def places(ids: np.ndarray) -> np.ndarray:
    """The place of each id among all of them in rising order."""
    order = np.empty(len(ids), dtype=np.int64)
    order[np.argsort(ids)] = np.arange(len(ids))
    return order


def _plain_row(row: dict) -> dict:
    return {
        "image_id": int(row["image_id"]),
        "category_id": int(row["category_id"]),
        "bbox": [float(side) for side in row["bbox"]],
    }


def _columns(rows: Sequence[dict]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image ids, category ids and boxes of sound rows."""
    images, categories = (np.array([int(row[key]) for row in rows], dtype=np.int64) for key in ROW_KEYS[:2])
    return images, categories, np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)


def _is_plain(rows: Sequence[dict]) -> bool:
    """Whether all is of the types that a JSON file gives; the values are not looked at."""
    if not set(map(type, rows)) <= {dict}:
        return False
    try:
        columns = [[row[key] for row in rows] for key in RESULT_KEYS]
    except (KeyError, TypeError):
        return False
    images, categories, boxes, scores = columns
    if not set(map(type, boxes)) <= {list} or not set(map(len, boxes)) <= {4}:
        return False
    numbers = set(map(type, itertools.chain(scores, *boxes)))
    if not (set(map(type, itertools.chain(images, categories))) <= {int} and numbers <= {int, float}):
        return False
    whole = itertools.chain(images, categories, *(boxes if int in numbers else ()), scores if int in numbers else ())
    return max(map(abs, whole), default=0) <= LARGEST_ID


def _check_rows(where: object, rows: Iterable[dict], keys: tuple[str, ...]) -> None:
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


def _is_integer(value: Any) -> bool:
    """Whole floats count: writers that go through an array make them. Ids that float64 cannot tell apart do not."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer):
        return False
    return (not isinstance(value, float) or value.is_integer()) and abs(int(value)) <= LARGEST_ID


def _whole(value: float) -> int | float:
    return int(value) if value.is_integer() else value


def _is_finite(value: object) -> bool:
    try:
        return isinstance(value, int | float | np.number) and math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def _places(
    where: str, images: np.ndarray, categories: np.ndarray, *, image_ids: np.ndarray, names: dict[int, str]
) -> tuple[np.ndarray, np.ndarray]:
    """Places of the ids among all of them: of categories, of images."""
    places = []
    category_ids = np.array(sorted(names), dtype=np.int64)
    classes = [f"{key} ({names[key]})" for key in category_ids.tolist()]
    for key, ids, known, listing in (
        ("image_id", images, image_ids, image_ids),
        ("category_id", categories, category_ids, classes),
    ):
        unknown = np.flatnonzero(~np.isin(ids, known))
        if len(unknown):
            found = f"{key} {ids[unknown[0]]} (row {unknown[0]}), which the ground truth lacks; "
            found += f"{len(unknown)} of {len(ids)} rows are like this"
            raise InputError(where, found=found, needed=f"one of: {listed([str(item) for item in listing], shown=30)}")
        places.append(np.searchsorted(known, ids))
    return places[1], places[0]
