"""Average precision of PASCAL VOC (Everingham et al. 2010, 2015), as its development kit computes it.

A detection belongs to the ground-truth box of its class and image that it overlaps most. From the best score down, the
first detection of a box is right and every later one is wrong. Difficult boxes are neither to be found nor wrong to
find. AP is the area under the precision envelope (VOC 2010 on), or its mean at 11 recalls (VOC 2007).

The kit adds one to widths because its corners are inclusive pixel numbers; here boxes are continuous, so that
``x2 - x1`` already is the kit's ``xmax - xmin + 1`` and every overlap is the same number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from resdet.errors import InputError
from resdet.structures import Detections

if TYPE_CHECKING:
    from resdet.datasets.annotations import Annotations

RECALLS_2007 = np.arange(0.0, 1.1, 0.1)
# The floats of the reference codes (py-faster-rcnn, detectron2), of which the 4th, 7th and 8th lie one rounding above
# 3/10, 6/10 and 7/10: a recall of exactly these does not reach its point there, and so not here.


class VocTruth(NamedTuple):
    """Ground truth of a whole set, one row a box."""

    boxes: np.ndarray
    """(B, 4) xyxy, frame: original."""
    labels: np.ndarray
    """(B,) int in [0, K)."""
    ignore: np.ndarray
    """(B,) bool: difficult."""
    images: np.ndarray
    """(B,) int in [0, num_images)."""
    num_images: int


class VocDetections(NamedTuple):
    """Detections of a whole set, one row a box, in any order."""

    boxes: np.ndarray
    """(D, 4) xyxy, frame: original."""
    scores: np.ndarray
    """(D,)."""
    labels: np.ndarray
    """(D,) int in [0, K)."""
    images: np.ndarray
    """(D,) int in [0, num_images)."""


class VocClass(NamedTuple):
    """One row of the per-class table."""

    name: str
    AP: float | None
    """None where the class has no ground truth; so is recall."""
    recall: float | None
    boxes: int
    """Ground-truth boxes that count, so without difficult ones."""
    detections: int


class VocFigures(NamedTuple):
    """Mean AP over the classes that have ground truth, as a fraction, and the classes in the order of their labels."""

    mAP: float
    per_class: tuple[VocClass, ...]
    iou: float
    method: str


def evaluate_voc(
    ground_truth: VocTruth, detections: VocDetections, *, classes: Sequence[str], iou: float = 0.5, method: str = "area"
) -> VocFigures:
    """VOC average precision per class and its mean.

    Args:
        ground_truth: every box of the set.
        detections: every detection. Of equal scores the earlier row goes first.
        classes: K names.
        iou: least overlap of a right detection, in (0, 1].
        method: "area" (VOC 2010 and later) or "11point" (VOC 2007).

    Raises:
        InputError: for arrays that do not fit each other, labels or images out of range, scores that are not finite,
            or no ground-truth box to find.
    """
    if method not in ("area", "11point"):
        raise InputError("VOC method", found=repr(method), needed="area or 11point")
    if not 0 < iou <= 1:
        raise InputError("VOC iou", found=iou, needed="a number in (0, 1]")
    num_images = ground_truth.num_images
    truth = VocTruth(**_checked("VOC ground truth", ground_truth, len(classes), num_images), num_images=num_images)
    found = VocDetections(**_checked("VOC detections", detections, len(classes), num_images))
    if truth.ignore.all():
        boxes = f"{len(truth.boxes)} boxes, none but difficult ones"
        raise InputError("VOC ground truth", found=boxes, needed="at least one box to find")

    order = np.argsort(-found.scores, kind="stable")
    found = VocDetections(*(column[order] for column in found))
    right, counted = _judge(truth, found, iou)
    per_class = []
    for label, name in enumerate(classes):
        total = int(((truth.labels == label) & ~truth.ignore).sum())
        ours = found.labels == label
        hits = np.cumsum(right[ours & counted])
        precision, recall = hits / np.arange(1, len(hits) + 1), hits / max(total, 1)
        ap = _AP[method](recall, precision) if total else None
        last_recall = float(recall[-1]) if len(recall) else 0.0
        per_class.append(VocClass(name, ap, last_recall if total else None, total, int(ours.sum())))
    mean = float(np.mean([row.AP for row in per_class if row.AP is not None]))
    return VocFigures(mean, tuple(per_class), float(iou), method)


def voc_truth(annotations: Annotations) -> VocTruth:
    """The ground truth of a data set; image numbers are its rows."""
    images = np.repeat(np.arange(len(annotations)), np.diff(annotations.first))
    return VocTruth(annotations.boxes, annotations.labels, annotations.ignore, images, len(annotations))


def voc_detections(answers: Iterable[tuple[int, Detections]]) -> VocDetections:
    """Gather ``(image number, its detections)`` into arrays; image numbers are the rows of the data set."""
    empty = (np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64))
    columns = [empty]
    for image, answer in answers:
        boxes, scores, labels = (field.detach().cpu().numpy() for field in answer)
        columns.append((boxes, scores, labels, np.full(len(labels), image)))
    return VocDetections(*(np.concatenate(column) for column in zip(*columns, strict=True)))


def _judge(truth: VocTruth, found: VocDetections, iou: float) -> tuple[np.ndarray, np.ndarray]:
    """Which detections, sorted by score, are right (D,), and which count at all (D,): those not on a difficult box."""
    group = truth.labels * truth.num_images + truth.images  # one group: a class in an image
    by_group = np.argsort(group, kind="stable")
    wanted = found.labels * truth.num_images + found.images
    first = np.searchsorted(group[by_group], wanted, side="left")
    rivals = np.searchsorted(group[by_group], wanted, side="right") - first

    # Every pair (detection, box of its group), the pairs of one detection side by side.
    starts = np.cumsum(rivals) - rivals
    detection = np.repeat(np.arange(len(wanted)), rivals)
    box = by_group[np.arange(len(detection)) - np.repeat(starts - first, rivals)]
    overlap = _paired_iou(found.boxes[detection], truth.boxes[box])

    best, chosen = np.zeros(len(wanted)), np.full(len(wanted), -1)
    some = rivals > 0
    if some.any():
        best[some] = np.maximum.reduceat(overlap, starts[some])
        top = np.flatnonzero(overlap == best[detection])  # of equal overlaps the first box, as in the kit
        owners, places = np.unique(detection[top], return_index=True)
        chosen[owners] = box[top[places]]
    hit = best >= iou
    counted = np.ones(len(wanted), bool)
    counted[hit] = ~truth.ignore[chosen[hit]]
    candidates = np.flatnonzero(hit & counted)
    right = np.zeros(len(wanted), bool)
    right[candidates[np.unique(chosen[candidates], return_index=True)[1]]] = True  # the first of each box
    return right, counted


def _paired_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n,) overlap of row with row; 0 for boxes without area."""
    sides = np.clip(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0, None)
    inside = sides.prod(axis=1)
    union = (a[:, 2:] - a[:, :2]).prod(axis=1) + (b[:, 2:] - b[:, :2]).prod(axis=1) - inside
    return np.divide(inside, union, out=np.zeros_like(inside), where=inside > 0)


def _area_under_envelope(recall: np.ndarray, precision: np.ndarray) -> float:
    envelope = np.maximum.accumulate(precision[::-1])[::-1]  # the best precision at this recall or a higher one
    return float((np.diff(recall, prepend=0.0) * envelope).sum())


def _mean_at_11_recalls(recall: np.ndarray, precision: np.ndarray) -> float:
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)  # 0 where the recall is never reached
    return float(envelope[np.searchsorted(recall, RECALLS_2007, side="left")].mean())


_AP = {"area": _area_under_envelope, "11point": _mean_at_11_recalls}


def _checked(where: str, rows: VocTruth | VocDetections, num_classes: int, num_images: int) -> dict[str, np.ndarray]:
    """The columns in one set of types, once they fit each other."""
    kinds = {"boxes": np.float64, "scores": np.float64, "ignore": bool, "labels": np.int64, "images": np.int64}
    limits = {"labels": num_classes, "images": num_images}
    columns, count = {}, len(rows.labels)
    for name, kind in kinds.items():
        if not hasattr(rows, name):
            continue
        given = np.asarray(getattr(rows, name))
        shape = (count, 4) if name == "boxes" else (count,)
        if given.shape != shape:
            raise InputError(f"{where}, {name}", found=f"shape {given.shape}", needed=f"shape {shape}")
        with np.errstate(invalid="ignore"):  # NaN as a label: told below
            column = columns[name] = given.astype(kind)
        if kind is np.float64:
            wrong, needed = ~np.isfinite(np.atleast_2d(column.T)).all(axis=0), "finite numbers"
        elif name in limits:
            wrong = (column != given) | (column < 0) | (column >= limits[name])
            needed = f"a whole number in [0, {limits[name]})"
        else:
            continue
        if wrong.any():
            first = np.flatnonzero(wrong)[0]
            raise InputError(f"{where}, {name}[{first}]", found=given[first], needed=needed)
    return columns
