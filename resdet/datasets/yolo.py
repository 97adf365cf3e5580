"""Data sets of YOLO's form: a text file for each image, a line for each box, all numbers fractions of the image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from resdet.datasets.annotations import Annotations, check_boxes, known_sizes
from resdet.datasets.file_names import FileNames
from resdet.datasets.images import SUFFIXES
from resdet.errors import InputError, listed, nearest

LAYOUT = "a data.yaml with train, val and names; images/... beside labels/... with a .txt of the same name"
OVER = 1e-3
"""By which a fraction may exceed 1: tools round."""
SPLITS = {"val": ("val", "valid", "validation"), "train": ("train", "training"), "test": ("test", "testing")}
"""What a split may be called."""


def read_yolo(
    data: str | os.PathLike[str], split: str = "train", *, classes: Sequence[str] | None = None, strict: bool = False
) -> Annotations:
    """Read one split of a YOLO data set into arrays. Polygons become the boxes around them.

    Args:
        data: the YAML file, with ``names``, and for each split a folder, a list of folders or a text file of images.
            Its paths start at its ``path``, which starts at its own folder.
        split: ``"train"``, ``"val"`` or ``"test"``.
        classes: names in the order of the labels, among those of the file. None: those of the file.
        strict: refuse boxes at fault instead of clipping or dropping them (see ``check_boxes``).

    Raises:
        InputError: a file is missing or its contents are not usable; names the first offender.
    """
    path = Path(data)
    content = read_yaml(path)
    given = next((content[name] for name in SPLITS.get(split, (split,)) if content.get(name)), None)
    if given is None:
        known = [name for name in ("train", "val", "valid", "test") if content.get(name)]
        raise InputError(f"{path}, split {split!r}", found="no such entry", needed=f"one of: {listed(known)}")
    root = path.parent / str(content.get("path") or "")
    entries = given if isinstance(given, list) else [given]
    images = [image for entry in entries for image in _images_of(path, root, str(entry))]
    names = class_names(path, content)
    return read_yolo_files(images, names, source=f"{path} ({split})", classes=classes, strict=strict)


def read_yolo_files(
    images: Sequence[Path],
    names: Sequence[str],
    *,
    source: str,
    classes: Sequence[str] | None = None,
    strict: bool = False,
) -> Annotations:
    """Read images and the label files that belong to them. An image without one has no objects.

    Args:
        images: paths.
        names: of the classes, by their numbers in the files.
        source: what lists them, for messages.
        classes: names in the order of the labels; None: ``names``.
        strict: as for :func:`read_yolo`.

    Raises:
        InputError: as :func:`read_yolo`.
    """
    if not images:
        raise InputError(source, found="no images", needed=LAYOUT)
    wanted = tuple(names if classes is None else classes)
    for name in wanted:
        if name not in names:
            raise InputError(f"classes of {source}", found=repr(name), needed=nearest(name, names))
    root = Path(os.path.commonpath([image.absolute().parent for image in images]))
    files = FileNames([os.path.relpath(image.absolute(), root) for image in images])
    hw = known_sizes(np.zeros((len(images), 2), np.int32), str(root), files)
    tables = [read_labels(label_file(image), len(names)) for image in images]
    rows = np.repeat(np.arange(len(images)), [len(table) for table in tables])
    table = np.concatenate([np.zeros((0, 5)), *tables])
    order = np.array([wanted.index(name) if name in wanted else -1 for name in names])
    labels = order[table[:, 0].astype(np.int64)]
    rows, table, labels = (part[labels >= 0] for part in (rows, table, labels))
    xyxy = table[:, 1:] * hw[rows][:, [1, 0, 1, 0]].clip(1)  # 0 where it cannot be known

    def describe(row: int) -> str:
        return f"{files[int(rows[row])]}, {table[row, 1:].round(4).tolist()} (x1, y1, x2, y2 as fractions)"

    boxes, kept = check_boxes(xyxy, hw[rows], describe, source=source, strict=strict)
    return Annotations(
        source=source,
        image_root=str(root),
        classes=wanted,
        category_ids=np.arange(1, len(wanted) + 1),
        image_ids=np.arange(len(images)),
        files=files,
        hw=hw,
        first=np.searchsorted(rows[kept], np.arange(len(images) + 1)),
        boxes=boxes,
        labels=labels[kept],
        ignore=np.zeros(len(boxes), dtype=bool),
        areas=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
        box_ids=np.arange(1, len(boxes) + 1),
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """The entries of a data file; nothing in it is run.

    Raises:
        InputError: missing, broken, or no such file.
    """
    try:
        content = yaml.safe_load(path.read_bytes())
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise InputError(path, found=reason, needed=LAYOUT) from error
    if not isinstance(content, dict) or "names" not in content:
        raise InputError(path, found="no names", needed=LAYOUT)
    return content


def class_names(path: Path, content: dict[str, Any]) -> tuple[str, ...]:
    """The names of a data file, a list or a dict from numbers.

    Raises:
        InputError: they are neither, or not each once.
    """
    names = content["names"]
    if isinstance(names, dict) and sorted(names) == list(range(len(names))):
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names or len({str(name) for name in names}) < len(names):
        raise InputError(f"{path}, names", found=names, needed="a list of names, each once, or a dict from 0 on")
    return tuple(str(name) for name in names)


def label_file(image: Path) -> Path:
    """Where the boxes of an image are: ``labels`` in place of the last ``images`` of its path, or beside it."""
    parts = list(image.parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place].lower() == "images":
            return Path(*parts[:place], "labels", *parts[place + 1 :]).with_suffix(".txt")
    return image.with_suffix(".txt")


def read_labels(path: Path, num_classes: int) -> np.ndarray:
    """(n, 5) class number and x1, y1, x2, y2 as fractions; of no file, none.

    Raises:
        InputError: a line is no box and no polygon, or its class has no name.
    """
    if not path.is_file():
        return np.zeros((0, 5))
    rows = []
    for number, line in enumerate(path.read_bytes().decode(errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            label, *values = map(float, line.split())
        except ValueError:
            label, values = -1.0, []
        numbers = np.array(values)
        sound = len(values) in (4, 5) or (len(values) >= 6 and len(values) % 2 == 0)
        if not sound or label % 1 != 0 or not np.isfinite(numbers).all():  # of NaN and infinity the rest is NaN
            needed = "class x y width height, or class and the corners of a polygon"
            raise InputError(f"{path}, line {number}", found=line.strip()[:60], needed=needed)
        if not 0 <= label < num_classes:
            needed = f"0 to {num_classes - 1}, of the {num_classes} names"
            raise InputError(f"{path}, line {number}", found=f"class {label:g}", needed=needed)
        if len(values) >= 6:
            corners = numbers.reshape(-1, 2)
            box = [*corners.min(0), *corners.max(0)]
        else:
            x, y, width, height = values[:4]  # a fifth is a score
            box = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
        if max(map(abs, values[:4] if len(values) < 6 else values)) > 1 + OVER:
            raise InputError(f"{path}, line {number}", found=line.strip()[:60], needed="fractions of the image, 0 to 1")
        rows.append([label, *box])
    return np.array(rows).reshape(-1, 5)


def _images_of(data: Path, root: Path, entry: str) -> list[Path]:
    """The images of a folder or of a text file with one a line."""
    place = next((p for p in (root / entry, data.parent / entry.lstrip("./")) if os.path.exists(p)), None)
    if place is None:
        raise InputError(f"{data}: {entry}", found=f"no {root / entry}", needed=LAYOUT)
    if place.is_dir():
        return sorted(p for p in place.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    lines = [line.strip() for line in place.read_text(encoding="utf-8-sig", errors="replace").splitlines()]
    images = [place.parent / line if line.startswith("./") else root / line for line in lines if line]
    if missing := [str(image) for image in images if not os.path.isfile(image)]:
        found = f"{len(missing)} of {len(images)} images are missing; first: {missing[0]}"
        raise InputError(place, found=found, needed="images below its folder")
    return images
