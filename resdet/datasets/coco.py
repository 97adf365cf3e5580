"""COCO's annotation files ("instances" json), COCO's own or of the same form."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from resdet.datasets.annotations import Annotations, Written, check_boxes, find_images, known_sizes
from resdet.datasets.coco_json import collector_paused, load_coco_json
from resdet.datasets.coco_table import Table, find, read_table, table_of
from resdet.datasets.file_names import FileNames
from resdet.datasets.kept_annotations import Kept, placed
from resdet.errors import InputError, nearest


@collector_paused()
def read_coco(
    annotation_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    *,
    strict: bool = False,
    classes: Sequence[str] | None = None,
    outside: bool = False,
) -> Annotations:
    """Read a COCO json into arrays; a large one from the cache (:mod:`resdet.datasets.kept_annotations`).

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
    kept = Kept(source, (strict, None if classes is None else [*classes]))
    if (known := kept.read()) is not None:
        names = list(known.files)
        return placed(known, root, names, find_images(root, names, source=source, outside=outside))
    with kept.listening():
        table = read_table(source) or table_of(load_coco_json(source, strict=strict))
    names = find_images(root, table.names, source=source, outside=outside)
    with kept.listening():
        annotations = _annotations(table, classes, FileNames(names), source=source, image_root=root, strict=strict)
    if (table.hw > 0).all():  # else what the headers of the images say has its part in it
        kept.keep(annotations, table.names)
    return annotations


def _annotations(
    table: Table, classes: Sequence[str] | None, files: FileNames, *, source: str, image_root: str, strict: bool
) -> Annotations:
    """The set of a file whose images are found."""
    categories = _categories(table.categories, classes, source)
    category_ids = np.array([category["id"] for category in categories], dtype=np.int64)
    hw, image_ids, columns = known_sizes(table.hw, image_root, files), table.image_ids, table.columns
    image_rows, label_rows = find(columns["image_id"], image_ids), find(columns["category_id"], category_ids)
    chosen = np.flatnonzero(label_rows >= 0)  # all of them unless classes leaves some out
    order = chosen[np.argsort(image_rows[chosen], kind="stable")]
    image_rows, label_rows = image_rows[order], label_rows[order]
    xywh, box_ids, areas, crowd = (columns[name][order] for name in ("bbox", "id", "area", "iscrowd"))

    def describe(row: int) -> str:
        return f"{files[int(image_rows[row])]}, annotation {box_ids[row]}, bbox {xywh[row].tolist()} (x, y, w, h)"

    finite, xyxy = np.isfinite(xywh).all(1), np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    boxes, kept = check_boxes(xyxy, hw[image_rows], describe, source=source, strict=strict)
    return Annotations(
        source=source,
        image_root=image_root,
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


def _categories(rows: list[dict], classes: Sequence[str] | None, source: str) -> list[dict]:
    """Those that are read, in the order of the labels."""
    rows = sorted(rows, key=lambda category: category["id"])
    if classes is None:
        return rows
    by_name = {category["name"]: category for category in rows}
    for name in classes:
        if name not in by_name:
            raise InputError(f"classes of {source}", found=repr(name), needed=nearest(name, by_name))
    if not classes or len(set(classes)) != len(classes):
        raise InputError(f"classes of {source}", found=list(classes), needed="one or more names, each once")
    return [by_name[name] for name in classes]


def to_coco(annotations: Annotations) -> dict:
    """A COCO ground-truth dictionary.

    Returns:
        ``info, images, annotations, categories``: annotation ids count from 1, ``iscrowd`` is ``ignore``.
    """
    written = annotations.written
    columns = {
        "image_id": annotations.image_ids[written.images],
        "category_id": annotations.category_ids[written.labels],
        "bbox": written.boxes,
        "area": written.areas,
        "iscrowd": written.ignore.astype(int),
    }
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    sizes = zip(annotations.image_ids.tolist(), annotations.files, annotations.hw.tolist(), strict=True)
    categories = zip(annotations.category_ids.tolist(), annotations.classes, strict=True)
    return {
        "info": {"description": annotations.source},
        "images": [{"id": i, "file_name": name, "height": h, "width": w} for i, name, (h, w) in sizes],
        "annotations": [{"id": number, **dict(zip(columns, row, strict=True))} for number, row in enumerate(rows, 1)],
        "categories": [{"id": i, "name": name} for i, name in categories],
    }
