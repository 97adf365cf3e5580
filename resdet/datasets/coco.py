"""COCO's annotation files ("instances" json), COCO's own or of the same form."""

from __future__ import annotations

import gc
import json
import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from resdet.datasets.annotations import Annotations, FileNames, Written, check_boxes, find_images, known_sizes
from resdet.errors import InputError, nearest

logger = logging.getLogger(__name__)

LAYOUT = (
    "the COCO layout: annotations/instances_train2017.json beside train2017/*.jpg, or your own paths to such a pair"
)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Millions of new containers and no garbage: Python's collector would double the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@_collector_paused()
def read_coco(
    annotation_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    *,
    strict: bool = False,
    classes: Sequence[str] | None = None,
    outside: bool = False,
) -> Annotations:
    """Read a COCO json into arrays.

    Args:
        annotation_file: json with ``images``, ``annotations``, ``categories``.
        image_root: the folder that its ``file_name`` entries start from.
        strict: refuse what would otherwise be repaired with a warning (see :func:`load_coco_json`, ``check_boxes``).
        classes: keep only these classes, labelled in this order; all images stay. None: all, in category-id order.
        outside: open images that lie outside of ``image_root``, too.

    Raises:
        InputError: a file is missing or its contents are not usable; names the first offender.
    """
    source, root = os.fspath(annotation_file), os.fspath(image_root)
    content = load_coco_json(source, strict=strict)
    categories = sorted(content["categories"], key=lambda category: category["id"])
    if classes is not None:
        by_name = {category["name"]: category for category in categories}
        for name in classes:
            if name not in by_name:
                raise InputError(f"classes of {source}", found=repr(name), needed=nearest(name, by_name))
        if not classes or len(set(classes)) != len(classes):
            raise InputError(f"classes of {source}", found=list(classes), needed="one or more names, each once")
        categories = [by_name[name] for name in classes]
    category_ids = np.array([category["id"] for category in categories], dtype=np.int64)

    images, annotations = content["images"], content["annotations"]
    names = [image["file_name"] for image in images]
    files = FileNames(find_images(root, names, source=source, outside=outside))
    image_ids = np.array([image["id"] for image in images], dtype=np.int64)
    hw = np.array([(image.get("height") or 0, image.get("width") or 0) for image in images], dtype=np.int32)
    hw = known_sizes(hw, root, files)

    columns = _columns(annotations)
    del content, images, annotations
    image_rows, label_rows = _find(columns["image_id"], image_ids), _find(columns["category_id"], category_ids)
    chosen = np.flatnonzero(label_rows >= 0)  # all of them unless classes leaves some out
    order = chosen[np.argsort(image_rows[chosen], kind="stable")]
    image_rows, label_rows = image_rows[order], label_rows[order]
    xywh, box_ids = columns["bbox"][order], columns["id"][order]
    areas, crowd = columns["area"][order], columns["iscrowd"][order]

    def describe(row: int) -> str:
        return f"{files[int(image_rows[row])]}, annotation {box_ids[row]}, bbox {xywh[row].tolist()} (x, y, w, h)"

    xyxy = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    finite = np.isfinite(xywh).all(1)
    boxes, kept = check_boxes(xyxy, hw[image_rows], describe, source=source, strict=strict)
    return Annotations(
        source=source,
        image_root=root,
        classes=tuple(category["name"] for category in categories),
        category_ids=category_ids,
        image_ids=image_ids,
        files=files,
        hw=hw,
        first=np.searchsorted(image_rows[kept], np.arange(len(image_ids) + 1)),
        boxes=boxes,
        labels=label_rows[kept],
        ignore=crowd[kept],
        areas=areas[kept].astype(np.float32),
        box_ids=box_ids[kept],
        repaired=Written(xywh[finite], areas[finite], crowd[finite], label_rows[finite], image_rows[finite]),
    )


@_collector_paused()
def load_coco_json(path: str | os.PathLike[str], *, strict: bool = False) -> dict:
    """Load a COCO ground-truth json and make it safe for pycocotools, which accepts or crashes on what is wrong here.

    Repaired, each kind counted in one logged warning: annotation ids that are missing, below 1 or used twice (all are
    renumbered from 1 in file order); missing ``iscrowd`` (0) and ``area`` (w * h). Boxes are left as they are written.

    Args:
        path: json with ``images``, ``annotations``, ``categories``.
        strict: refuse instead of repairing.

    Returns:
        The json's dictionary.

    Raises:
        InputError: missing or broken file, missing keys, no images, an id used twice, an unknown category or image
            id, two categories of one name, a ``bbox`` that is not four numbers; names the first offender.
    """
    path = os.fspath(path)
    content = _parse(path)
    for key in ("images", "annotations", "categories"):
        rows = content.get(key) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not all(type(row) is dict for row in rows):
            keys = f"an object with the keys {sorted(content)}" if isinstance(content, dict) else "a list"
            wrong = f"a {key!r} entry that is not a list of objects" if rows is not None else keys
            raise InputError(path, found=wrong, needed="COCO ground truth: lists of images, annotations, categories")
    for key in ("images", "categories"):
        if not content[key]:
            raise InputError(path, found=f"{key!r} is empty", needed=f"{'an image' if key == 'images' else 'a class'}")
    image_ids = _unique(path, content["images"], "image", "id", int)
    _unique(path, content["images"], "image", "file_name", str, repeats=True)
    category_ids = _unique(path, content["categories"], "category", "id", int)
    _unique(path, content["categories"], "category", "name", str)
    for image in content["images"]:
        for side in ("height", "width"):
            value = image.get(side) or 0  # absent or null: read from the image's header later
            if type(value) not in (int, float) or not 0 <= value < 2**31 or value != int(value):
                raise InputError(f"{path}, image {image['id']}", found=f"{side} {value!r}", needed="a number of pixels")
    annotations = content["annotations"]
    _check_references(path, annotations, "category_id", category_ids)
    _check_references(path, annotations, "image_id", image_ids)
    _check_bboxes(path, annotations)
    _repair(path, annotations, strict)
    return content


def _parse(path: str) -> object:
    try:
        with open(path, "rb") as file:
            return json.load(file)
    except json.JSONDecodeError as error:
        found = f"broken JSON at line {error.lineno}, column {error.colno}: {error.msg}"
        raise InputError(path, found=found, needed="a complete JSON file") from error
    except UnicodeDecodeError as error:
        raise InputError(path, found=f"not text: {error}", needed="a JSON file in UTF-8") from error
    except OSError as error:
        raise InputError(f"annotation file {path}", found=error.strerror, needed=LAYOUT) from error


def _unique(path: str, rows: list[dict], noun: str, key: str, kind: type, *, repeats: bool = False) -> set:
    """The values of ``key``; raises unless each row has one of ``kind``, and no two the same (unless ``repeats``)."""
    seen: dict = {}
    for position, row in enumerate(rows):
        value = row.get(key)
        if type(value) is not kind or (kind is int and abs(value) >= 2**63):
            found = f"{key} {value!r}" if key in row else f"no {key!r} (keys: {', '.join(row)})"
            needed = f"{key}: {'an integer' if kind is int else 'a text'}"
            raise InputError(f"{path}, {noun} number {position + 1}", found=found, needed=needed)
        if value in seen and not repeats:
            found = f"{key} {value!r} twice: {noun} numbers {seen[value] + 1} and {position + 1}"
            raise InputError(path, found=found, needed=f"each {noun} with its own {key}")
        seen[value] = position
    return set(seen)


def _check_references(path: str, annotations: list[dict], key: str, known: set[int]) -> None:
    values = [row.get(key) for row in annotations]
    if set(map(type, values)) <= {int} and known.issuperset(values):
        return
    for position, (row, value) in enumerate(zip(annotations, values, strict=True)):
        if type(value) is not int or value not in known:
            where = f"{path}, annotation {row.get('id', f'number {position + 1}')}"
            found = f"{key} {value!r}" if key in row else f"no {key!r} (keys: {', '.join(row)})"
            listing = ", ".join(map(str, sorted(known)[:10])) + (" …" if len(known) > 10 else "")
            table = "images" if key == "image_id" else "categories"
            raise InputError(where, found=found, needed=f"an id of {table!r} ({len(known)} known: {listing})")


def _check_bboxes(path: str, annotations: list[dict]) -> None:
    boxes = [row.get("bbox") for row in annotations]
    if set(map(type, boxes)) <= {list} and set(map(len, boxes)) <= {4}:
        values = np.array(boxes)
        if values.ndim == 2 and values.dtype.kind in "if":
            return
    for position, (row, box) in enumerate(zip(annotations, boxes, strict=True)):
        if type(box) is not list or len(box) != 4 or not all(type(value) in (int, float) for value in box):
            where = f"{path}, annotation {row.get('id', f'number {position + 1}')}"
            found = f"bbox {box!r}" if "bbox" in row else f"no 'bbox' (keys: {', '.join(row)})"
            raise InputError(where, found=found, needed="bbox: four numbers [x, y, width, height]")


def _repair(path: str, annotations: list[dict], strict: bool) -> None:
    ids = [row.get("id") for row in annotations]
    renumber = any(type(i) is not int or i < 1 for i in ids) or len(set(ids)) < len(ids)
    faults = {}
    for key in ("iscrowd", "area"):
        lacking = [row for row in annotations if row.get(key) is None]
        if lacking:
            faults[key] = f"{len(lacking)} of {len(annotations)} annotations have no {key!r}"
            faults[key] += " (taken as 0)" if key == "iscrowd" else " (taken as width * height)"
            for row in lacking:
                row[key] = 0 if key == "iscrowd" else row["bbox"][2] * row["bbox"][3]
        for row in annotations:
            sound = row[key] in (0, 1) if key == "iscrowd" else _is_finite(row[key])
            if not sound:
                needed = "0 or 1" if key == "iscrowd" else "a finite number"
                raise InputError(f"{path}, annotation {row.get('id')}", found=f"{key} {row[key]!r}", needed=needed)
    if renumber:
        faults["id"] = "annotation ids are missing, below 1 or used twice (renumbered from 1 in file order)"
        for number, row in enumerate(annotations, 1):
            row["id"] = number
    if faults and strict:
        raise InputError(path, found="; ".join(faults.values()), needed="complete annotations with unique ids from 1")
    if faults:
        logger.warning("%s: %s", path, "; ".join(faults.values()))


def _is_finite(value: object) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def _columns(annotations: list[dict]) -> dict[str, np.ndarray]:
    dtypes = {"id": np.int64, "image_id": np.int64, "category_id": np.int64, "iscrowd": bool, "area": np.float64}
    columns = {key: np.array([row[key] for row in annotations], dtype) for key, dtype in dtypes.items()}
    columns["bbox"] = np.array([row["bbox"] for row in annotations], dtype=np.float64).reshape(-1, 4)
    return columns


def _find(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Row of each value in ``known``, -1 where it is not there."""
    order = np.argsort(known)
    rows = order[np.searchsorted(known, values, sorter=order).clip(max=len(known) - 1)]
    return np.where(known[rows] == values, rows, -1)
