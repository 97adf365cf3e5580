"""A detection data set as arrays, and the one place where its boxes are checked.

Python objects are reference-counted, so a loader process that only *reads* a list of them copies its pages. Arrays are
not: here a set of any size costs the worker processes nothing.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from resdet.datasets.file_names import FileNames
from resdet.datasets.images import SUFFIXES
from resdet.datasets.lenience import header_hw, is_lenient
from resdet.errors import InputError, listed

logger = logging.getLogger(__name__)

ROUNDING = 0.1
"""Pixels by which a box may leave its image without a word: COCO writes two decimals, and sums of them overshoot."""


class Written(NamedTuple):
    """Boxes as an annotation file has them, before any is clipped or dropped: what COCO's protocol scores against."""

    boxes: np.ndarray
    """(W, 4) float64 x, y, width, height."""
    areas: np.ndarray
    """(W,) float64: the file's ``area``, else of the box."""
    ignore: np.ndarray
    """(W,) bool."""
    labels: np.ndarray
    """(W,) int64 in [0, K)."""
    images: np.ndarray
    """(W,) int64 in [0, n)."""


@dataclass(frozen=True, eq=False)
class Annotations:
    """A whole detection set: n images, B boxes, K classes. Every reader returns one."""

    source: str
    """Annotation file or folder, for messages."""
    image_root: str
    classes: tuple[str, ...]
    """K names; index = label."""
    category_ids: np.ndarray
    """(K,) int64: the ids of the file (COCO) or 1..K."""
    image_ids: np.ndarray
    """(n,) int64, unique."""
    files: FileNames
    """n names below ``image_root``."""
    hw: np.ndarray
    """(n, 2) int32; (0, 0) where not known."""
    first: np.ndarray
    """(n + 1,) int64: the boxes of image i are rows ``first[i]:first[i + 1]``."""
    boxes: np.ndarray
    """(B, 4) float32 xyxy, frame: original."""
    labels: np.ndarray
    """(B,) int64 in [0, K)."""
    ignore: np.ndarray
    """(B,) bool: crowd (COCO) or difficult (VOC)."""
    areas: np.ndarray
    """(B,) float32: the file's ``area`` (COCO: of the mask), else of the box."""
    box_ids: np.ndarray
    """(B,) int64 annotation ids (COCO), else 1..B."""
    repaired: Written | None = None
    """What the file says, where that is not quite what is above."""
    left_out: int = 0
    """Images that cannot be read and are not here (:mod:`resdet.datasets.readable`)."""

    def __len__(self) -> int:
        return len(self.image_ids)

    def rows(self, index: int) -> slice:
        """The rows of ``boxes``, ``labels``, … that belong to image ``index``."""
        return slice(int(self.first[index]), int(self.first[index + 1]))

    @property
    def written(self) -> Written:
        """The boxes as the file has them."""
        if self.repaired is not None:
            return self.repaired
        xywh = self.boxes.astype(np.float64)
        xywh[:, 2:] -= xywh[:, :2]
        images = np.repeat(np.arange(len(self)), np.diff(self.first))
        return Written(xywh, self.areas.astype(np.float64), self.ignore, self.labels, images)

    def select(self, rows: np.ndarray) -> Annotations:
        """The same set with some of its images only.

        Args:
            rows: (m,) of them, in the order that they then have.
        """
        counts = np.diff(self.first)[rows]
        boxes = np.concatenate([np.arange(self.first[row], self.first[row + 1]) for row in rows] or [np.arange(0)])
        place = np.full(len(self), -1)
        place[rows] = np.arange(len(rows))
        written = self.written
        kept = place[written.images] >= 0
        return replace(
            self,
            image_ids=self.image_ids[rows],
            files=FileNames([self.files[int(row)] for row in rows]),
            hw=self.hw[rows],
            first=np.cumsum([0, *counts]),
            **{name: getattr(self, name)[boxes] for name in ("boxes", "labels", "ignore", "areas", "box_ids")},
            repaired=Written(*(part[kept] for part in written[:-1]), images=place[written.images[kept]]),
        )

    def with_classes(self, classes: Sequence[str]) -> Annotations:
        """The same images with other classes: those that are there keep their ids, boxes of others are left out.

        Args:
            classes: K' names, in the order of the labels; a name that is not there gets an id of its own and no box.
        """
        known = {name: label for label, name in enumerate(self.classes)}
        label_of = np.array([classes.index(name) if name in classes else -1 for name in self.classes], dtype=np.int64)
        free = int(self.category_ids.max(initial=0)) + 1
        ids = [int(self.category_ids[known[n]]) if n in known else free + place for place, n in enumerate(classes)]
        kept, written = label_of[self.labels] >= 0, self.written
        seen = label_of[written.labels] >= 0
        images = np.repeat(np.arange(len(self)), np.diff(self.first))[kept]
        return replace(
            self,
            classes=tuple(classes),
            category_ids=np.array(ids, dtype=np.int64),
            first=np.searchsorted(images, np.arange(len(self) + 1)),
            **{name: getattr(self, name)[kept] for name in ("boxes", "ignore", "areas", "box_ids")},
            labels=label_of[self.labels[kept]],
            repaired=Written(*(part[seen] for part in written))._replace(labels=label_of[written.labels[seen]]),
        )

    def path(self, index: int) -> str:
        """Where the image file of ``index`` lies."""
        return os.path.join(self.image_root, self.files[index])


def check_boxes(
    boxes: np.ndarray, hw: np.ndarray, describe: Callable[[int], str], *, source: str, strict: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Clip boxes to their images and drop those of which nothing remains, with one logged warning for the file.

    A box is at fault when a value is NaN or infinite, when it has no width or height as written (a negative one
    included), or when it lies more than :data:`ROUNDING` pixels outside its image (negative corners included).

    Args:
        boxes: (B, 4) xyxy as written in the file, continuous.
        hw: (B, 2) size of each box's image; (0, 0) where not known, which leaves right and bottom unchecked.
        describe: row → the image file, annotation id and written values, for the message; called for the first three.
        source: the annotation file, for the message.
        strict: refuse instead.

    Returns:
        The boxes that remain, (B', 4) float32, ``0 <= x1 < x2 <= W``; and (B,) bool, which rows they are.

    Raises:
        InputError: ``strict`` and a box is at fault.
    """
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    limits = np.where(hw > 0, hw, np.inf).reshape(-1, 2)[:, [1, 0, 1, 0]]
    finite = np.isfinite(boxes).all(1)
    with np.errstate(invalid="ignore"):
        sided = finite & (boxes[:, 2:] > boxes[:, :2]).all(1)
        outside = sided & ((boxes < -ROUNDING) | (boxes > limits + ROUNDING)).any(1)
        clipped = np.clip(boxes, 0, limits).astype(np.float32)
        kept = sided & (clipped[:, 2:] > clipped[:, :2]).all(1)
    counts = {
        "NaN or infinite (dropped)": int((~finite).sum()),
        "without width or height (dropped)": int((finite & ~sided).sum()),
        "partly outside the image (clipped)": int((outside & kept).sum()),
        "wholly outside the image (dropped)": int((sided & ~kept).sum()),
    }
    if any(counts.values()):
        first = np.flatnonzero(~kept | outside)[:3]
        found = f"{sum(counts.values())} of {len(boxes)} boxes at fault: "
        found += ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
        found += "; first: " + "; ".join(describe(int(row)) for row in first)
        if strict:
            raise InputError(source, found=found, needed="boxes with finite values, positive sides, inside their image")
        logger.warning("%s: %s", source, found)
    return clipped[kept], kept


def find_images(
    image_root: str, names: Sequence[str], *, source: str, outside: bool = False, exact: bool = False
) -> list[str]:
    """Where below a folder the files of a labelling tool's names are.

    A name that is there is taken as it is. Of others the last part counts, where one file alone has it: names with the
    folders of another machine, with the backslashes of Windows, with another case or form of the ending, or without
    one. One warning counts them.

    Args:
        image_root: the folder.
        names: of the files, as written.
        source: what names them, for messages.
        outside: take names that lead out of the folder (absolute ones, and those with ``..``) as they are.
        exact: take no name by its last part.

    Returns:
        For each name a path below ``image_root``.

    Raises:
        InputError: the folder or a file is missing (but in ``lenient``), a name leads out, or its last part is that of
            several files.
    """
    where = f"image folder {image_root}"
    if not os.path.isdir(image_root):
        raise InputError(where, found="no such folder", needed=f"the folder with the images of {source}")
    listings: dict[str, set[str]] = {}
    found, elsewhere, missing = list(names), [], []
    for row, name in enumerate(names):
        folder, base = os.path.split(name)
        if folder not in listings:
            leads_out = os.path.isabs(name) or ".." in re.split(r"[/\\]", name)
            path = os.path.join(image_root, folder)
            listings[folder] = set(os.listdir(path)) if os.path.isdir(path) and (outside or not leads_out) else set()
        if base not in listings[folder]:
            elsewhere.append(row)
    by_last_part = _by_last_part(image_root) if elsewhere and not exact else {}
    taken = {*names} - {names[row] for row in elsewhere} if elsewhere else set()
    for row in elsewhere:
        places = by_last_part.get(_last_part(names[row]), [])
        if len(places) > 1:
            needed = "names that tell their folder"
            raise InputError(where, found=f"{names[row]!r} of {source} may be {listed(places)}", needed=needed)
        if places and places[0] not in taken:  # else two names would mean one file
            found[row] = places[0]
            taken.add(places[0])
        else:
            missing.append(names[row])
    if missing and not is_lenient():
        raise InputError(
            where,
            found=f"{len(missing)} of {len(names)} images are missing; first: {', '.join(missing[:3])}",
            needed=f"every image that {source} names, below this folder",
        )
    if elsewhere:
        first = f"{names[elsewhere[0]]!r} is {found[elsewhere[0]]}"
        logger.warning("%s: %d images were found by the last part of their names: %s", source, len(elsewhere), first)
    return found


def _last_part(name: str) -> str:
    """What two ways to name a file have in common: no folder, no case, no ending."""
    return os.path.splitext(re.split(r"[/\\]", name)[-1])[0].lower()


def _by_last_part(image_root: str) -> dict[str, list[str]]:
    places: dict[str, list[str]] = {}
    for folder, _, files in sorted(os.walk(image_root)):
        for name in sorted(files):
            if name.lower().endswith(SUFFIXES):
                path = os.path.relpath(os.path.join(folder, name), image_root)
                places.setdefault(_last_part(name), []).append(path)
    return places


def known_sizes(hw: np.ndarray, image_root: str, files: Sequence[str]) -> np.ndarray:
    """(n, 2) int32 sizes with every (0, 0) replaced by what the image's header says."""
    unknown = np.flatnonzero((hw <= 0).any(1))
    if len(unknown):
        hw = hw.copy()
        hw[unknown] = [header_hw(os.path.join(image_root, files[int(i)])) for i in unknown]
    return hw
