"""COCO's ground-truth JSON: parsed, repaired where labelling tools are loose, refused where nothing can be right."""

from __future__ import annotations

import gc
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from resdet.errors import InputError, bounded

logger = logging.getLogger(__name__)

LAYOUT = (
    "the COCO layout: annotations/instances_train2017.json beside train2017/*.jpg, or your own paths to such a pair"
)
LARGEST_ID = 2**63
REPEATED = "annotations are written twice, box and all"


@contextmanager
def collector_paused() -> Iterator[None]:
    """Millions of new containers and no garbage: Python's collector would double the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@collector_paused()
def load_coco_json(path: str | os.PathLike[str], *, strict: bool = False) -> dict:
    """Load a COCO ground-truth json and make it safe for pycocotools, which accepts or crashes on what is wrong here.

    Repaired, each kind counted in one logged warning: annotation ids that are missing, below 1 or used twice (all are
    renumbered from 1 in file order); missing ``iscrowd`` (0) and ``area`` (w * h); ids of images and classes that are
    texts or fractions but whole numbers; boxes that are missing beside a polygon or an RLE; a class that is only the
    heading of others (Roboflow's first). Boxes that are there are left as they are written. Without ``annotations``,
    as in test-dev, there are none.

    Args:
        path: json with ``images``, ``annotations``, ``categories``.
        strict: refuse instead of repairing.

    Returns:
        The json's dictionary.

    Raises:
        InputError: missing or broken file, missing keys, no images, an id used twice, an unknown category or image
            id, two categories of one name, a ``bbox`` that is not four numbers, boxes in fractions of the image; names
            the first offender.
    """
    path = os.fspath(path)
    content = _parse(path)
    if isinstance(content, dict) and {"images", "categories"} <= content.keys():
        content.setdefault("annotations", [])
    for key in ("images", "annotations", "categories"):
        rows = content.get(key) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not all(type(row) is dict for row in rows):
            keys = f"an object with the keys {sorted(content)}" if isinstance(content, dict) else "a list"
            wrong = f"a {key!r} entry that is not a list of objects" if rows is not None else keys
            raise InputError(path, found=wrong, needed="COCO ground truth: lists of images, annotations, categories")
    for key in ("images", "categories"):
        if not content[key]:
            raise InputError(path, found=f"{key!r} is empty", needed=f"{'an image' if key == 'images' else 'a class'}")
    repairs = _repair_ids(content)
    repairs += _boxes_of_shapes(path, content["annotations"])
    repairs += drop_headings(content)
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
    _repair(path, annotations, repairs, strict)
    _tell_repeats(path, content)
    return content


def _parse(path: str) -> object:
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"annotation file {path}", found="a folder, a pipe or a device", needed=LAYOUT)
    try:
        with open(path, "rb") as file:
            return json.load(file)
    except RecursionError as error:
        raise InputError(path, found="lists in lists without end", needed="a COCO file") from error
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
        if type(value) is not kind or (kind is int and abs(value) >= LARGEST_ID) or not _can_be_written(value):
            found = f"{key} {bounded(value)}" if key in row else f"no {key!r} (keys: {', '.join(row)})"
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
        values = np.zeros(0)
        with suppress(ValueError, OverflowError):  # lists in it, or integers of hundreds of digits
            values = np.array(boxes)
        if values.ndim == 2 and values.dtype.kind in "if":
            if np.abs(values).max() <= 1:
                needed = "pixels: multiply x and width by the image's width, y and height by its height"
                raise InputError(path, found="all boxes are smaller than one pixel (fractions?)", needed=needed)
            return
    for position, (row, box) in enumerate(zip(annotations, boxes, strict=True)):
        if type(box) is not list or len(box) != 4 or not all(_is_number(value) for value in box):
            where = f"{path}, annotation {row.get('id', f'number {position + 1}')}"
            found = f"bbox {bounded(box)}" if "bbox" in row else f"no 'bbox' (keys: {', '.join(row)})"
            raise InputError(where, found=found, needed="bbox: four numbers [x, y, width, height]")


def _repair(path: str, annotations: list[dict], repairs: Sequence[str], strict: bool) -> None:
    ids = [row.get("id") for row in annotations]
    renumber = any(type(i) is not int or not 1 <= i < LARGEST_ID for i in ids) or len(set(ids)) < len(ids)
    faults = {str(number): told for number, told in enumerate(repairs)}
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
                raise InputError(
                    f"{path}, annotation {row.get('id')}", found=f"{key} {bounded(row[key])}", needed=needed
                )
    if renumber:
        faults["id"] = "annotation ids are missing, below 1 or used twice (renumbered from 1 in file order)"
        for number, row in enumerate(annotations, 1):
            row["id"] = number
    if faults and strict:
        raise InputError(path, found="; ".join(faults.values()), needed="complete annotations with unique ids from 1")
    if faults:
        logger.warning("%s: %s", path, "; ".join(faults.values()))


def _repair_ids(content: dict) -> list[str]:
    """Whole numbers that are written as texts or with a point become numbers."""
    changed = 0
    for table, keys in (("images", ("id",)), ("categories", ("id",)), ("annotations", ("image_id", "category_id"))):
        for row in content[table]:
            for key in keys:
                value = row.get(key)
                text = isinstance(value, str) and len(value) < 20 and value.strip().lstrip("-").isdecimal()
                if text or (isinstance(value, float) and value.is_integer()):
                    row[key], changed = int(value), changed + 1
    return [f"{changed} ids are texts or have a point (taken as whole numbers)"] if changed else []


def _boxes_of_shapes(path: str, annotations: list[dict]) -> list[str]:
    """Boxes around the polygons and masks of annotations that have none."""
    lacking = [row for row in annotations if row.get("bbox") in (None, []) and row.get("segmentation")]
    for row in lacking:
        try:
            row["bbox"] = _box_of(row["segmentation"])
        except (TypeError, ValueError, KeyError, IndexError, OverflowError) as error:
            needed = "bbox [x, y, width, height], or polygons [[x1, y1, x2, y2, ...]], or an RLE"
            raise InputError(
                f"{path}, annotation {row.get('id')}", found="a broken segmentation", needed=needed
            ) from error
    return [f"{len(lacking)} annotations have no 'bbox' (that of their segmentation taken)"] if lacking else []


def _box_of(shape: Any) -> list[float]:
    if isinstance(shape, dict):
        from pycocotools import mask

        height, width = map(int, shape["size"])
        if not 0 < height * width < 2**31:
            raise ValueError("size")
        coded = mask.frPyObjects(shape, height, width) if isinstance(shape["counts"], list) else shape
        return [float(value) for value in mask.toBbox(coded)]
    corners = np.concatenate([np.array(polygon, dtype=np.float64).reshape(-1, 2) for polygon in shape])
    (x1, y1), (x2, y2) = corners.min(0), corners.max(0)
    return [float(x1), float(y1), float(x2 - x1), float(y2 - y1)]


def drop_headings(content: dict) -> list[str]:
    """A class without boxes that others name as their heading is none: exports of Roboflow begin with it."""
    used = {row.get("category_id") for row in content["annotations"] if isinstance(row.get("category_id"), int)}
    above = {
        str(row.get("supercategory")) for row in content["categories"] if row.get("name") != row.get("supercategory")
    }
    headings = [row for row in content["categories"] if str(row.get("name")) in above and row.get("id") not in used]
    headings = headings if used and len(headings) < len(content["categories"]) else []
    content["categories"] = [row for row in content["categories"] if row not in headings]
    names = ", ".join(str(row["name"]) for row in headings)
    return [f"{names}: no class but a heading of others, without boxes (left out)"] if headings else []


def _tell_repeats(path: str, content: dict) -> None:
    """Say what is twice in a file, which costs precision and recall."""
    rows = Counter((row["image_id"], row["category_id"], *row["bbox"]) for row in content["annotations"])
    names = Counter(row["file_name"] for row in content["images"])
    told = [
        (sum(rows.values()) - len(rows), REPEATED),
        (sum(names.values()) - len(names), "images have a file of another id"),
    ]
    if parts := [f"{count} {what}" for count, what in told if count]:
        logger.warning("%s: %s", path, "; ".join(parts))


def _can_be_written(value: object) -> bool:
    """Whether a text can be a file's name and be shown: half of a pair of surrogates cannot."""
    try:
        str(value).encode("utf-8", "surrogateescape")
    except UnicodeError:
        return False
    return "\0" not in str(value)


def _is_number(value: object) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < LARGEST_ID)


def _is_finite(value: object) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False
