"""What became of each detection, and the figures that follow from it alone.

Matching, order and interpolation are COCO's, so that AP at weights of one is that of
:func:`resdet.evaluation.coco.evaluate_coco`. "Right" without a threshold means at IoU 0.5.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_matrix

from resdet.evaluation.coco_curves import RECALLS, CocoFound, CocoObjects, taken_objects

BINS = 20
"""Of the histogram of scores."""
CALIBRATION_BINS = 10
DRAWS_AT_ONCE = 128
"""So that what is worked on stays in the processor's cache."""
ONCE = np.ones((1, 1), dtype=np.int32)
"""The draw that has the one image 0 once: plain AP."""
_EDGES = np.append(RECALLS, np.inf)


class Outcomes(NamedTuple):
    """Detections that COCO looks at (the best 100 of an image and class), by class, then falling score."""

    objects: CocoObjects
    found: CocoFound
    taken: np.ndarray
    """(D, 10) int64: the object that each one takes at each IoU threshold, -1: none."""
    right: np.ndarray
    """(D, 10) bool."""
    counted: np.ndarray
    """(D, 10) bool: without those inside a crowd, which are neither right nor wrong."""
    totals: np.ndarray
    """(K,) objects to be found, so without crowds."""
    starts: np.ndarray
    """(K + 1,): the rows of class k are ``starts[k]:starts[k + 1]``."""

    @property
    def wrong(self) -> np.ndarray:
        """(D,) bool, at IoU 0.5."""
        return self.counted[:, 0] & ~self.right[:, 0]

    def rows(self, label: int) -> slice:
        """Of a class."""
        return slice(int(self.starts[label]), int(self.starts[label + 1]))


class WorkingPoint(NamedTuple):
    """The score from which on a class's detections are best kept, by F1 at IoU 0.5; what is kept is right or wrong."""

    threshold: float | None
    """None: no detection is right, or there is no object."""
    precision: float | None
    recall: float | None
    f1: float | None


def judge(objects: CocoObjects, found: CocoFound, *, num_classes: int) -> Outcomes:
    """Match as COCO does, objects of all sizes.

    Args:
        objects: ground truth.
        found: detections.
        num_classes: K.
    """
    taken = taken_objects(objects, found, num_classes=num_classes)
    order = np.lexsort((found.images, -found.scores, found.labels))
    order = order[taken[order, 0] > -2]
    found, taken = CocoFound(*(field[order] for field in found)), taken[order]
    crowd = np.append(objects.crowd, False)[taken]  # -1 is the last
    totals = np.bincount(objects.labels[~objects.crowd], minlength=num_classes)
    starts = np.searchsorted(found.labels, np.arange(num_classes + 1))
    return Outcomes(objects, found, taken, (taken >= 0) & ~crowd, ~crowd, totals, starts)


def average_precision(
    right: np.ndarray, counted: np.ndarray, images: np.ndarray, *, draws: np.ndarray = ONCE, totals: np.ndarray
) -> np.ndarray:
    """COCO's AP of one class, in many draws of the images at once.

    Args:
        right: (D, T) bool, by falling score: at T thresholds.
        counted: (D, T) bool.
        images: (D,) rows of ``draws``.
        draws: (N, B) int32: how many times each image is in each draw.
        totals: (B,) objects to be found.

    Returns:
        (T, B); NaN where there is nothing to find.
    """
    areas = np.zeros((right.shape[1], draws.shape[1]))
    hits = np.flatnonzero(right.any(1))  # precision matters nowhere else
    if not len(hits):
        return np.where(totals > 0, areas, np.nan)
    for start in range(0, draws.shape[1], DRAWS_AT_ONCE):
        some = slice(start, start + DRAWS_AT_ONCE)
        drawn, count = np.ascontiguousarray(draws[:, some]), np.maximum(totals[some], 1)
        seen = _sums(images, hits, drawn)
        for number, column in enumerate(counted.T):
            mine = np.flatnonzero(right[hits, number])
            outside = np.flatnonzero(~column)
            rights = np.cumsum(drawn[images[hits[mine]]], axis=0, dtype=np.int32)
            passed = _sums(images[outside], np.searchsorted(outside, hits[mine]) - 1, drawn) if len(outside) else 0
            precise = rights / (seen[mine] - passed + np.spacing(1))
            best = np.maximum.accumulate(precise[::-1], axis=0)[::-1]
            areas[number, some] = (best * np.diff(_reached(rights / count), axis=0, prepend=0)).sum(0) / len(RECALLS)
    return np.where(totals > 0, areas, np.nan)


def _sums(images: np.ndarray, rows: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """(J, B): how many detections there are up to each of the rising rows in each draw."""
    ends = np.append(0, rows + 1)
    shape = len(rows), len(draws)  # a detection is in the part that the next of the rows ends
    parts = csr_matrix((np.ones(ends[-1], dtype=np.int32), images[: ends[-1]], ends), shape=shape)
    return np.cumsum(parts @ draws, axis=0, dtype=np.int32)


def _reached(recalls: np.ndarray) -> np.ndarray:
    """How many of :data:`RECALLS` are reached: ``searchsorted(RECALLS, recalls, "right")``, a few times as fast."""
    place = (recalls * (len(RECALLS) - 1)).astype(np.int64)
    place += recalls >= _EDGES[place + 1]
    place -= recalls < _EDGES[place]
    return place + 1


def working_points(outcomes: Outcomes) -> list[WorkingPoint]:
    """Of each class. Of equal F1 the higher score."""
    points = []
    for label, total in enumerate(outcomes.totals):
        mine = outcomes.rows(label)
        rights, seen = np.cumsum(outcomes.right[mine, 0]), np.cumsum(outcomes.counted[mine, 0])
        scores = outcomes.found.scores[mine]
        if not total or not len(rights) or not rights[-1]:
            points.append(WorkingPoint(None, None, None, None))
            continue
        f1 = 2 * rights / (seen + total)
        f1[:-1][scores[:-1] == scores[1:]] = 0  # equal scores are kept together
        best = int(f1.argmax())
        precision, recall = rights[best] / seen[best], rights[best] / total
        points.append(WorkingPoint(float(scores[best]), float(precision), float(recall), float(f1[best])))
    return points


def kept(outcomes: Outcomes, points: list[WorkingPoint]) -> np.ndarray:
    """(D,) bool: detections from their class's threshold on; none of a class without one."""
    thresholds = np.array([np.inf if point.threshold is None else point.threshold for point in points])
    return outcomes.found.scores >= thresholds[outcomes.found.labels]


def confusion(outcomes: Outcomes, keep: np.ndarray) -> np.ndarray:
    """Classes taken for each other, at IoU 0.5.

    What is right is on the diagonal. Of the rest, detections and objects of any class are matched, best first.

    Args:
        outcomes: of all detections.
        keep: (D,) those that count.

    Returns:
        (K + 1, K + 1) int64: row = true class, column = detected one; the last row: background, the last column:
        missed.
    """
    objects, found, background = outcomes.objects, outcomes.found, len(outcomes.totals)
    matrix = np.zeros((background + 1, background + 1), dtype=np.int64)
    hits = keep & outcomes.right[:, 0]
    np.add.at(matrix, (found.labels[hits], found.labels[hits]), 1)
    free = ~objects.crowd
    free[outcomes.taken[hits, 0]] = False
    left, things = np.flatnonzero(keep & outcomes.wrong), np.flatnonzero(free)
    rest = CocoFound(*(field[left] for field in found))._replace(labels=np.zeros_like(left))
    targets = CocoObjects(*(field[things] for field in objects))._replace(labels=np.zeros_like(things))
    taken = taken_objects(targets, rest, num_classes=1)[:, 0]
    true = np.append(objects.labels[things], background)[np.maximum(taken, -1)]
    np.add.at(matrix, (true, found.labels[left]), 1)
    free[things[taken[taken >= 0]]] = False
    matrix[:background, background] = np.bincount(objects.labels[free], minlength=background)
    return matrix


def score_histogram(outcomes: Outcomes) -> dict[str, np.ndarray]:
    """Edges of the bins in [0, 1], and the right and wrong detections in each."""
    edges = np.linspace(0, 1, BINS + 1)
    scores = outcomes.found.scores.clip(0, 1)
    kinds = {"right": outcomes.right[:, 0], "wrong": outcomes.wrong}
    return {"edges": edges, **{name: np.histogram(scores[mask], edges)[0] for name, mask in kinds.items()}}


def calibration(outcomes: Outcomes) -> dict:
    """Reliability: in each bin of scores their mean beside the share of right detections.

    ``ece`` is the mean of the differences, each bin by its detections (Guo et al. 2017); None without detections.
    """
    scores, right = (field[outcomes.counted[:, 0]] for field in (outcomes.found.scores, outcomes.right[:, 0]))
    place = np.minimum((scores.clip(0, 1) * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    sums = [np.bincount(place, weights, CALIBRATION_BINS) for weights in (None, scores, right)]
    rows = [
        {
            "from": number / CALIBRATION_BINS,
            "to": (number + 1) / CALIBRATION_BINS,
            "detections": int(count),
            "score": score / count if count else None,
            "precision": hits / count if count else None,
        }
        for number, (count, score, hits) in enumerate(zip(*sums, strict=True))
    ]
    gaps = np.abs(sums[1] - sums[2]).sum()
    return {"bins": rows, "ece": float(gaps / len(scores)) if len(scores) else None}
