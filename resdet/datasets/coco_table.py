"""A COCO file as columns of numbers, decoded with types and a part at a time, so that millions of boxes fit in memory.

Only what is sound is taken this way. A file with anything that is to be repaired, told or refused goes the slow way,
through :func:`resdet.datasets.coco_json.load_coco_json`, which knows all the words.
"""

from __future__ import annotations

import codecs
import itertools
import json
import mmap
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
import numpy as np

from resdet.datasets.coco_json import LARGEST_ID, collector_paused, drop_headings

PART = 1 << 24
"""Bytes of text that are decoded at a time: about 100,000 boxes."""
BETWEEN = re.compile(rb"\}\s*(,)\s*\{")
"""Two objects of a list; or something of the kind inside a text, which then is no end of a part."""
TRIES = 100
"""How many such places are tried as the end of one part."""


class Table(NamedTuple):
    """A COCO file of n images and B boxes, checked, in the file's order."""

    image_ids: np.ndarray
    """(n,) int64, unique."""
    names: list[str]
    """n ``file_name``."""
    hw: np.ndarray
    """(n, 2) int32; 0 where the file does not say."""
    categories: list[dict[str, Any]]
    """Each with a unique ``id`` and a unique ``name``."""
    columns: dict[str, np.ndarray]
    """``id``, ``image_id``, ``category_id`` (B,) int64; ``iscrowd`` (B,) bool; ``area`` (B,) float64; ``bbox`` (B, 4)
    float64 x, y, width, height."""


class _File(msgspec.Struct):
    images: msgspec.Raw
    annotations: msgspec.Raw
    categories: msgspec.Raw


class _Image(msgspec.Struct, gc=False):
    id: int
    file_name: str
    height: int | None = None
    width: int | None = None


class _Box(msgspec.Struct, gc=False):
    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    area: float
    iscrowd: int | bool


@collector_paused()
def read_table(path: str) -> Table | None:
    """The columns of a file; None where :func:`resdet.datasets.coco_json.load_coco_json` has something to say.

    Args:
        path: of the file.
    """
    if not os.path.isfile(path):
        return None
    try:
        with open(path, "rb") as file:
            text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        _check_encoding(text)
        parts = msgspec.json.decode(text, type=_File)
        categories = json.loads(bytes(memoryview(parts.categories)))
        images, columns = _images(parts.images), _columns(parts.annotations)
    except (OSError, ValueError, OverflowError, RecursionError):  # msgspec's errors are ValueErrors
        return None
    table = Table(*images, categories, columns)
    return table if _is_sound(table) else None


def table_of(content: dict[str, Any]) -> Table:
    """The columns of what :func:`resdet.datasets.coco_json.load_coco_json` has returned."""
    images, rows = content["images"], content["annotations"]
    hw = np.array([(image.get("height") or 0, image.get("width") or 0) for image in images], np.int32)
    dtypes = {"id": np.int64, "image_id": np.int64, "category_id": np.int64, "iscrowd": bool, "area": np.float64}
    columns = {key: np.array([row[key] for row in rows], dtype) for key, dtype in dtypes.items()}
    columns["bbox"] = np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4)
    ids = np.array([image["id"] for image in images], np.int64)
    return Table(ids, [image["file_name"] for image in images], hw, content["categories"], columns)


def find(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Row of each value in ``known``, -1 where it is not there."""
    order = np.argsort(known)
    rows = order[np.searchsorted(known, values, sorter=order).clip(max=len(known) - 1)]
    return np.where(known[rows] == values, rows, -1)


def _check_encoding(text: mmap.mmap) -> None:
    """Raises UnicodeDecodeError, a ValueError: of what it skips the decoder does not look at the encoding."""
    decoder = codecs.getincrementaldecoder("utf8")()
    for start in range(0, len(text), PART):
        decoder.decode(text[start : start + PART])
    decoder.decode(b"", final=True)


def _parts(raw: msgspec.Raw, kind: type) -> Iterator[list[Any]]:
    """A list of objects, part by part.

    A part ends between two objects. Where what looks like that lies inside a text or a list, the part before it is no
    JSON, and the next place is tried.

    Raises:
        ValueError: not a list of such objects.
    """
    decoder, text = msgspec.json.Decoder(list[kind]), memoryview(raw)  # type: ignore[valid-type]
    start, end = 1, len(text) - 1  # inside of the brackets
    if bytes(text[:1]) != b"[":
        raise ValueError("not a list")
    while end - start > PART:
        for place in itertools.islice(BETWEEN.finditer(text, start + PART, end), TRIES):
            comma = place.start(1)
            try:
                part = decoder.decode(b"[%b]" % text[start:comma])
            except msgspec.ValidationError:
                raise
            except msgspec.DecodeError:
                continue
            yield part
            start = comma + 1
            break
        else:
            break
    yield decoder.decode(b"[%b]" % text[start:end])


def _images(raw: msgspec.Raw) -> tuple[np.ndarray, list[str], np.ndarray]:
    rows = [row for part in _parts(raw, _Image) for row in part]
    sizes = np.array([(row.height or 0, row.width or 0) for row in rows], np.int64).reshape(-1, 2)
    if sizes.min(initial=0) < 0 or sizes.max(initial=0) >= 2**31:
        raise ValueError("sizes")
    return np.array([row.id for row in rows], np.int64), [row.file_name for row in rows], sizes.astype(np.int32)


def _columns(raw: msgspec.Raw) -> dict[str, np.ndarray]:
    found: list[dict[str, np.ndarray]] = []
    for rows in _parts(raw, _Box):
        part = {key: _column([getattr(row, key) for row in rows], np.int64) for key in ("id", "image_id")}
        part["category_id"] = _column([row.category_id for row in rows], np.int64)
        part["area"] = _column([row.area for row in rows], np.float64)
        corners = itertools.chain.from_iterable([row.bbox for row in rows])
        part["bbox"] = np.fromiter(corners, np.float64, 4 * len(rows)).reshape(-1, 4)
        crowd = _column([row.iscrowd for row in rows], np.int64)
        if crowd.min(initial=0) < 0 or crowd.max(initial=0) > 1:
            raise ValueError("iscrowd")
        found.append({**part, "iscrowd": crowd > 0})
    return {key: np.concatenate([part.pop(key) for part in found]) for key in list(found[0])}


def _column(values: list[Any], dtype: type) -> np.ndarray:
    return np.fromiter(values, dtype, len(values))


def _is_sound(table: Table) -> bool:
    """Whether nothing is to be said of a file whose values have the right types."""
    columns, boxes, categories = table.columns, table.columns["bbox"], table.categories
    if not _are_sound(categories) or not _can_be_files(table.names) or not _all_differ(table.image_ids):
        return False
    known = np.array([category["id"] for category in categories], np.int64)
    used = [{"category_id": number} for number in np.unique(columns["category_id"]).tolist()]
    if drop_headings({"annotations": used, "categories": list(categories)}):
        return False
    if not len(boxes):
        return True
    return bool(
        columns["id"].min() >= 1
        and _all_differ(columns["id"])
        and (find(columns["category_id"], known) >= 0).all()
        and (find(columns["image_id"], table.image_ids) >= 0).all()
        and np.isfinite(columns["area"]).all()
        and 1 < np.abs(boxes).max() < LARGEST_ID  # fractions of the image; integers that are no numbers of pixels
        and not _has_repeats(columns)
    )


def _are_sound(categories: object) -> bool:
    if not isinstance(categories, list) or not categories or not all(type(row) is dict for row in categories):
        return False
    ids, names = ([row.get(key) for row in categories] for key in ("id", "name"))
    typed = set(map(type, ids)) == {int} and set(map(type, names)) == {str}
    return typed and len(set(ids)) == len(ids) and max(map(abs, ids)) < LARGEST_ID and _can_be_files(names)


def _can_be_files(names: list[str]) -> bool:
    """Whether there are names, all different, that can be written."""
    whole = "".join(names)
    try:
        os.fsencode(whole)
    except ValueError:
        return False
    return bool(names) and "\0" not in whole and len(set(names)) == len(names)


def _all_differ(values: np.ndarray) -> bool:
    rising = bool((values[1:] > values[:-1]).all())  # as most files have them
    return len(values) > 0 and values.min() > -LARGEST_ID and (rising or not _any_twice(values))


def _has_repeats(columns: dict[str, np.ndarray]) -> bool:
    """Whether a box may be there twice, class and all: two rows have the same 64 bits made of all their values."""
    mixed = np.zeros(len(columns["id"]), np.uint64)
    for values in (columns["image_id"], columns["category_id"], *columns["bbox"].T):
        bits = (values + values.dtype.type(0)).view(np.uint64)  # -0.0 is 0.0
        mixed = (mixed ^ bits) * np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio, odd
        mixed ^= mixed >> np.uint64(29)
    return _any_twice(mixed)


def _any_twice(values: np.ndarray) -> bool:
    ordered = np.sort(values)
    return bool((ordered[1:] == ordered[:-1]).any())
