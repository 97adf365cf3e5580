"""What kinds of error cost how much AP, as TIDE sorts them (Bolya et al. 2020).

Each wrong detection is of one kind, by its IoU with objects of its own class and of others; each object that no
detection finds, nor would find if its class or its place were mended, is missed. The cost of a kind is by how much
AP50 rises when all errors of that kind, and nothing else, are mended. Order of the kinds and way of mending are those
of the authors' code; AP is COCO's, so up to 100 detections of an image *and class* count, and a class all of whose
objects are mended away leaves the mean.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from resdet.evaluation.coco_curves import CocoFound, CocoObjects, overlaps
from resdet.inspection.outcomes import Outcomes, average_precision

FOREGROUND, BACKGROUND = 0.5, 0.1
"""Least IoU of a right detection, and of one that means an object at all."""
KINDS = ("classification", "localization", "both", "duplicate", "background", "missed")
CLASSIFICATION, LOCALIZATION, BOTH, DUPLICATE, NOTHING, MISSED = range(len(KINDS))


class Errors(NamedTuple):
    """The errors at IoU 0.5 and what they cost."""

    kinds: np.ndarray
    """(D,) int64: place in :data:`KINDS` of each detection; -1: it is right or in a crowd."""
    missed: np.ndarray
    """(B,) bool: objects."""
    AP50: float
    costs: dict[str, float]
    """By kind, and of all false positives and all false negatives; never negative."""
    counts: dict[str, int]
    class_costs: np.ndarray
    """(K, 6): rise of the class's own AP50 by kind; NaN without objects."""


def find_errors(outcomes: Outcomes) -> Errors:
    """Sort the errors by kind and mend each kind."""
    objects, found, right = outcomes.objects, outcomes.found, outcomes.right[:, 0]
    own, other = _nearest(objects, found)
    kinds = _kinds(outcomes.wrong, own[0], other[0])
    used = np.zeros(len(objects.labels) + 1, dtype=bool)  # the last is nobody's
    used[outcomes.taken[right, 0]] = True
    aims = np.where(kinds == LOCALIZATION, own[1], np.where(kinds == CLASSIFICATION, other[1], -1))
    aims[used[aims]] = -1  # what aims at a found object can only be left out
    aimed = np.zeros_like(used)
    aimed[aims] = True
    missed = ~(used | aimed)[:-1] & ~objects.crowd
    aims[~_best_of_each(aims, found.scores)] = -1

    counted = outcomes.counted[:, 0]
    plain = _precision(found.labels, found.scores, right, counted, outcomes.totals)
    gains = []
    for kind in range(MISSED):
        mended = (kinds == kind) & (aims >= 0)
        labels = found.labels.copy()
        labels[mended] = objects.labels[aims[mended]]
        stays = counted & ((kinds != kind) | mended)
        gains.append(_precision(labels, found.scores, right | mended, stays, outcomes.totals))
    gains.append(_precision(found.labels, found.scores, right, counted, _without(outcomes, missed)))
    special = {
        "false positives": _precision(found.labels, found.scores, right, right, outcomes.totals),
        "false negatives": _precision(
            found.labels, found.scores, right, counted, _without(outcomes, ~used[:-1] & ~objects.crowd)
        ),
    }
    named = {**dict(zip(KINDS, gains, strict=True)), **special}
    start = _mean(plain)
    numbers = [*np.bincount(kinds[kinds >= 0], minlength=MISSED)[:MISSED].tolist(), int(missed.sum())]
    return Errors(
        kinds=kinds,
        missed=missed,
        AP50=start,
        costs={name: max(_mean(area) - start, 0.0) for name, area in named.items()},
        counts=dict(zip(KINDS, numbers, strict=True)),
        class_costs=(np.stack(gains, axis=1) - plain[:, None]).clip(min=0),
    )


def _nearest(objects: CocoObjects, found: CocoFound) -> tuple[tuple, tuple]:
    """IoU with the nearest object of the own class and of others, 0 below :data:`BACKGROUND`; and which, -1: none."""
    pairs = near_pairs(objects, found, least=BACKGROUND)
    same = found.labels[pairs[0]] == objects.labels[pairs[1]]
    answers = []
    for mask in (same, ~same):
        row, thing, overlap = (column[mask] for column in pairs)
        order = np.lexsort((-thing, overlap))  # the last of a detection stays: the nearest, the first of equal ones
        best, which = np.zeros(len(found.scores)), np.full(len(found.scores), -1)
        best[row[order]], which[row[order]] = overlap[order], thing[order]
        answers.append((best, which))
    return answers[0], answers[1]


def near_pairs(objects: CocoObjects, found: CocoFound, *, least: float) -> list[np.ndarray]:
    """Rows of detections and of objects, without crowds, of one image and any class; and their IoU, at least that."""
    things = np.flatnonzero(~objects.crowd)
    things = things[np.argsort(objects.images[things], kind="stable")]
    targets = CocoObjects(*(field[things] for field in objects))._replace(labels=np.zeros_like(things))
    anyone = found._replace(labels=np.zeros_like(found.labels))
    columns = zip(*overlaps(targets, anyone, num_classes=1, least=least), strict=True)
    row, thing, overlap = (np.concatenate(column) for column in columns)
    return [row, things[thing], overlap]


def _kinds(wrong: np.ndarray, own: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The first kind that fits, as in the authors' code: a poor box of the own class before another class's object."""
    cases = [
        (LOCALIZATION, (own >= BACKGROUND) & (own < FOREGROUND)),
        (CLASSIFICATION, other >= FOREGROUND),
        (DUPLICATE, own >= FOREGROUND),
        (NOTHING, np.maximum(own, other) < BACKGROUND),
    ]
    kinds = np.select([case for _, case in cases], [kind for kind, _ in cases], BOTH)
    return np.where(wrong, kinds, -1)


def _best_of_each(aims: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(D,) bool: of the detections that aim at one object the surest; of equal ones the first."""
    order = np.lexsort((-np.arange(len(scores)), scores))
    order = order[aims[order] >= 0]
    best = np.full(aims.max(initial=-1) + 1, -1)
    best[aims[order]] = order
    chosen = np.zeros(len(aims), dtype=bool)
    chosen[best[best >= 0]] = True
    return chosen


def _precision(
    labels: np.ndarray, scores: np.ndarray, right: np.ndarray, counted: np.ndarray, totals: np.ndarray
) -> np.ndarray:
    """(K,) AP50 of each class; NaN without objects."""
    rows = np.flatnonzero(counted)
    rows = rows[np.lexsort((-scores[rows], labels[rows]))]
    starts = np.searchsorted(labels[rows], np.arange(len(totals) + 1))
    areas = np.zeros(len(totals))
    for label, total in enumerate(totals):
        mine = rows[starts[label] : starts[label + 1]]
        every, nowhere = np.ones((len(mine), 1), dtype=bool), np.zeros_like(mine)
        areas[label] = average_precision(right[mine, None], every, nowhere, totals=total[None])[0, 0]
    return areas


def _without(outcomes: Outcomes, lost: np.ndarray) -> np.ndarray:
    """(K,) objects to be found when those are not."""
    return outcomes.totals - np.bincount(outcomes.objects.labels[lost], minlength=len(outcomes.totals))


def _mean(areas: np.ndarray) -> float:
    """Over the classes that have objects."""
    known = areas[~np.isnan(areas)]
    return float(known.mean()) if len(known) else 0.0
