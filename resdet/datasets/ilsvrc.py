"""What the two ILSVRC readers share: their folders, lists of names, and hundreds of thousands of annotation files.

The files are VOC's XML with other corners: pixels count from 0 and the last one is included. (Corners of 0 occur, a box
that reaches the right border ends at W - 1, and the challenge's own kit adds one to widths.) So the continuous box of
``xmin, ymin, xmax, ymax`` is ``(xmin, ymin, xmax + 1, ymax + 1)``, which has the kit's overlaps; where xmax is W
already, the box ends at W.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from resdet.datasets.annotations import Annotations, check_boxes
from resdet.datasets.file_names import FileNames
from resdet.datasets.images import open_image
from resdet.datasets.lenience import header_hw
from resdet.datasets.voc_xml import parse_xml
from resdet.errors import InputError, listed
from resdet.files import keep_arrays, kept_arrays

logger = logging.getLogger(__name__)

KEPT_FROM = 20_000
"""Annotation files from which on their content is kept in one file: below, reading them takes seconds."""
VERSION = 1
"""Of what is kept: another number with every change of what is read, or of its form."""
SAME_ASPECT = 0.01
"""Difference of two aspect ratios that rounding explains: half a pixel of the 333 that shown images had at least, twice
over, with room to spare."""


_LINE = re.compile(r"\s*([^,\s]+)[,\s]*(.*?)\s*$")


class Records(NamedTuple):
    """What n annotation files say; B boxes, image after image."""

    hw: np.ndarray
    """(n, 2) int32: the size of the image file."""
    rows: np.ndarray
    """(B,) int64, rising: the image of each box."""
    boxes: np.ndarray
    """(B, 4) float64 xyxy, frame: original; continuous, not yet checked."""
    names: np.ndarray
    """(B,) class names."""
    difficult: np.ndarray
    """(B,) bool."""

    def of_boxes(self, chosen: np.ndarray) -> Records:
        """The same images with some of the boxes; ``chosen`` is (B,) bool."""
        return self._replace(**{key: getattr(self, key)[chosen] for key in ("rows", "boxes", "names", "difficult")})


def ilsvrc_folder(root: str | os.PathLike[str], task: str) -> str:
    """The folder with ``Data/<task>``: ``root`` itself or ``root/ILSVRC``.

    Raises:
        InputError: there is none.
    """
    for folder in (os.fspath(root), os.path.join(root, "ILSVRC")):
        if os.path.isdir(os.path.join(folder, "Data", task)):
            return folder
    there = sorted(os.listdir(root)) if os.path.isdir(root) else None
    found = "no such folder" if there is None else f"no folder Data/{task}, but {listed(there)}"
    needed = f"the folder ILSVRC of the challenge, with Data/{task} and Annotations/{task}, or the one above it"
    raise InputError(f"ILSVRC in {root}", found=found, needed=needed)


def read_list(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """The lines of a list: a name, and what stands behind it; blanks or the first comma divide the two.

    Raises:
        InputError: the file cannot be read, or no line has a name.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text"
        raise InputError(path, found=reason, needed="a list with one image name a line") from error
    lines = [found.groups() for found in map(_LINE.match, text.splitlines()) if found]
    if not lines:
        raise InputError(path, found="no names", needed="one name a line")
    return lines


def list_path(folder: str, task: str, name: str | os.PathLike[str]) -> str:
    """Where a list lies: a file of that path, or ``ImageSets/<task>/<name>.txt``.

    Raises:
        InputError: neither is there; tells which lists are.
    """
    sets = os.path.join(folder, "ImageSets", task)
    for path in (os.fspath(name), os.path.join(sets, f"{name}.txt")):
        if os.path.isfile(path):
            return path
    there = sorted(file[:-4] for file in os.listdir(sets) if file.endswith(".txt")) if os.path.isdir(sets) else []
    needed = f"the path of a list, or one of {listed(there)}"
    raise InputError(f"image list {name}", found=f"no such file, nor one in {sets}", needed=needed)


def read_records(images: Sequence[str], xmls: Sequence[str], *, kept_as: Path) -> Records:
    """Read n annotation files and the sizes of their images.

    A file may give another size than its image has: that of the image as it was shown to be annotated. Boxes on a size
    of the same aspect are scaled to the image; another aspect is taken for a wrong entry, and the boxes as they are.
    Both are counted in a logged warning.

    From :data:`KEPT_FROM` files on the result is written to ``kept_as`` where that is possible, and read from there as
    long as names and folders are the same. A file that is edited in its place is not noticed: delete ``kept_as`` then.

    Args:
        images: n paths.
        xmls: n paths.
        kept_as: of :func:`resdet.files.kept_path`.

    Raises:
        InputError: a file is broken or missing.
    """
    large = len(xmls) >= KEPT_FROM
    fingerprint = _fingerprint(images, xmls) if large else ""
    known = _read_kept(kept_as, fingerprint, len(xmls)) if large else None
    if known is not None:
        return known
    if large:
        logger.info("reading %s annotation files, which takes minutes; kept as %s", f"{len(xmls):,}", kept_as)
    hw, boxes, names, difficult, counts = [], [], [], [], []
    scaled: list[str] = []
    odd: list[str] = []
    for path, xml in zip(images, xmls, strict=True):
        content = parse_xml(xml)
        size, ratios = _settle(content.hw, path)
        if size != content.hw and 0 not in content.hw:
            (odd if ratios is None else scaled).append(xml)
        drawn_on = size if ratios is None else content.hw
        one = _continuous(np.array(content.boxes, dtype=np.float64).reshape(-1, 4), drawn_on)
        boxes.append(one if ratios is None else one * ratios)
        hw.append(size)
        counts.append(len(content.labels))
        names += content.labels
        difficult += content.difficult
    for files, what in ((scaled, "boxes are scaled"), (odd, "of another aspect, not believed")):
        if files:
            message = "%d of %d annotation files give another size than the image has (%s); first: %s"
            logger.warning(message, len(files), len(xmls), what, ", ".join(files[:3]))
    records = Records(
        hw=np.array(hw, dtype=np.int32).reshape(-1, 2),
        rows=np.repeat(np.arange(len(hw)), counts),
        boxes=np.concatenate([np.empty((0, 4)), *boxes]),
        names=np.array(names, dtype=str),
        difficult=np.array(difficult, dtype=bool),
    )
    if large:
        keep_arrays(kept_as, fingerprint, records._asdict())
    return records


def annotations_of(
    records: Records, files: Sequence[str], *, classes: Sequence[str], synsets: Sequence[str], source: str, root: str
) -> Annotations:
    """Check the boxes and put all into the arrays of a detection set; images without boxes stay.

    Args:
        records: of n images; every name is one of ``synsets``.
        files: n names below ``root``.
        classes: K names to show.
        synsets: K names as the annotation files have them.
        source: for messages.
        root: the image folder.
    """
    rows, written = records.rows, records.boxes

    def describe(row: int) -> str:
        number = row - np.searchsorted(rows, rows[row]) + 1
        return (
            f"{files[int(rows[row])]}, object {number}, {written[row].tolist()} (x1, y1, x2, y2 as continuous corners)"
        )

    boxes, kept = check_boxes(written, records.hw[rows], describe, source=source)
    label_of = {name: label for label, name in enumerate(synsets)}
    return Annotations(
        source=source,
        image_root=root,
        classes=tuple(classes),
        category_ids=np.arange(1, len(classes) + 1),
        image_ids=np.arange(len(files)),
        files=FileNames(files),
        hw=records.hw,
        first=np.searchsorted(rows[kept], np.arange(len(files) + 1)),
        boxes=boxes,
        labels=np.array([label_of[name] for name in records.names[kept].tolist()], dtype=np.int64),
        ignore=records.difficult[kept],
        areas=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
        box_ids=np.arange(1, len(boxes) + 1),
    )


def _settle(annotated: tuple[int, int], path: str) -> tuple[tuple[int, int], tuple[float, float, float, float] | None]:
    """Size of the image that the boxes shall be on, and the ratios that take them there; None for as they are."""
    shown = header_hw(path)
    if 0 in shown:
        return (max(annotated[0], 1), max(annotated[1], 1)), None
    if annotated == shown or 0 in annotated:
        return shown, None
    if annotated == shown[::-1]:
        with open_image(path) as image:  # drawn before EXIF's rotation, as DetectionDataset will read it
            if annotated == image.size[::-1]:
                return annotated, None
    y, x = (there / here for there, here in zip(shown, annotated, strict=True))
    return shown, (x, y, x, y) if abs(math.log(y / x)) < SAME_ASPECT else None


def _continuous(corners: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """(G, 4) corners as written to continuous ones; a box that was only clicked gets no width, as in VOC."""
    limits = np.array(hw[::-1], dtype=np.float64)
    last = corners[:, 2:]
    with np.errstate(invalid="ignore"):
        last = np.where(last <= limits, np.minimum(last + 1, limits), last)  # what lies outside is told, not mended
        clicked = (corners[:, 2:] <= corners[:, :2]).any(1)
    boxes = np.concatenate([corners[:, :2], last], axis=1)
    boxes[clicked, 2:] = boxes[clicked, :2]
    return boxes


# ------------------------------------------------------------------------------------------------------ kept records


def _fingerprint(images: Sequence[str], xmls: Sequence[str]) -> str:
    """What changes when images or annotation files come or go."""
    digest = hashlib.sha256(f"{VERSION}\n".encode())
    for paths in (images, xmls):
        for path in paths:
            digest.update(os.fsencode(path) + b"\n")
        for folder in sorted({os.path.dirname(path) for path in paths}):
            digest.update(f"{os.stat(folder).st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _read_kept(path: Path, fingerprint: str, images: int) -> Records | None:
    kept = kept_arrays(path, fingerprint)
    if kept is None or kept.keys() != set(Records._fields):
        return None
    records = Records(**kept)
    return records if _sound(records, images) else None


def _sound(records: Records, images: int) -> bool:
    """Whether arrays have the types, shapes and order that :class:`Records` tells."""
    hw, rows, boxes, names, difficult = records
    return (
        [array.dtype.kind for array in records] == ["i", "i", "f", "U", "b"]
        and (hw.dtype, boxes.dtype) == (np.int32, np.float64)
        and hw.shape == (images, 2)
        and rows.shape == names.shape == difficult.shape == (len(boxes),)
        and boxes.shape == (len(boxes), 4)
        and bool((hw > 0).all() and (np.diff(rows) >= 0).all() and ((rows >= 0) & (rows < images)).all())
    )


def names_below(folder: str, suffixes: tuple[str, ...]) -> Iterable[str]:
    """Files of a folder and of the folders right in it, relative and sorted; hidden ones are passed over."""
    with os.scandir(folder) as entries:
        seen = sorted(entry.name + "/" * entry.is_dir() for entry in entries if not entry.name.startswith("."))
    for name in seen:
        if name.endswith("/"):
            inner = sorted(os.listdir(os.path.join(folder, name)))
            yield from (name + file for file in inner if file.lower().endswith(suffixes) and not file.startswith("."))
        elif name.lower().endswith(suffixes):
            yield name
