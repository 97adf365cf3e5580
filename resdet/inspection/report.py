"""All numbers of a report, as one record of plain values: the page shows them, ``--json`` writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from resdet.evaluation.coco import AT_50, AT_75, CocoFigures, evaluate_coco
from resdet.evaluation.coco_curves import RECALLS, CocoFound, coco_curves
from resdet.inspection.bootstrap import LEAST_IMAGES, LEVEL, compare
from resdet.inspection.errors import KINDS, Errors, find_errors
from resdet.inspection.inputs import InspectedData
from resdet.inspection.outcomes import (
    Outcomes,
    WorkingPoint,
    calibration,
    confusion,
    judge,
    kept,
    score_histogram,
    working_points,
)
from resdet.inspection.slices import sliced
from resdet.inspection.uncertain import margins

SHOWN_CLASSES = 30
"""In the confusion matrix of the page: those with the most errors."""
FIGURES = CocoFigures._fields[:12]
BACKGROUND, MISSED = "(background)", "(missed)"


class Judged(NamedTuple):
    """A detector, judged."""

    outcomes: Outcomes
    keep: np.ndarray
    """(D,) bool: from the class's best threshold on."""
    errors: Errors
    mistakes: np.ndarray
    """(N,) of each image: wrong detections kept, and objects without a right one."""
    found_objects: np.ndarray
    """(B,) bool."""


def build_record(
    data: InspectedData, detectors: Mapping[str, CocoFound], *, worst: int, resamples: int, seed: int
) -> tuple[dict[str, Any], dict[str, Judged]]:
    """The record, and the detectors judged, for the pictures.

    Args:
        data: ground truth.
        detectors: detections by the detector's name, of one or of two.
        worst: images in each list.
        resamples: of the images, for the intervals.
        seed: of the resamples.
    """
    judged, parts = {}, []
    for name, found in detectors.items():
        judged[name], part = _detector(data, found, worst=worst)
        parts.append({"name": name, **part})
    objects = data.truth.objects
    record: dict[str, Any] = {
        "data": {
            "source": data.source,
            "images": len(data.truth.image_ids),
            "objects": int((~objects.crowd).sum()),
            "crowds": int(objects.crowd.sum()),
            "classes": len(data.classes),
        },
        "detectors": parts,
        "comparison": None,
    }
    if len(judged) == 2:
        record["comparison"] = _comparison(data, judged, worst=worst, resamples=resamples, seed=seed)
    return record, judged


def _detector(data: InspectedData, found: CocoFound, *, worst: int) -> tuple[Judged, dict[str, Any]]:
    count = len(data.classes)
    figures = evaluate_coco(data.truth, found)
    precision, _ = coco_curves(data.truth.objects, found, num_classes=count, bounds=(32.0**2, 96.0**2))
    outcomes = judge(data.truth.objects, found, num_classes=count)
    points, errors = working_points(outcomes), find_errors(outcomes)
    keep = kept(outcomes, points)
    matrix = confusion(outcomes, keep)
    judged = _judged(outcomes, keep, errors, images=len(data.truth.image_ids))
    everywhere = precision[:, :, outcomes.totals > 0, 0]
    curves = {"AP": everywhere.mean((0, 2)), "AP50": everywhere[AT_50].mean(1), "AP75": everywhere[AT_75].mean(1)}
    order = np.argsort(-judged.mistakes, kind="stable")[:worst]
    return judged, {
        "detections": len(found.scores),
        "figures": {
            name: None if (value := getattr(figures, name)) < 0 else value for name in CocoFigures._fields[:12]
        },
        "curves": {"recall": RECALLS, **curves},
        "classes": _class_rows(data, outcomes, points, errors, precision[..., 0]),
        "errors": {"AP50": errors.AP50, "costs": errors.costs, "counts": errors.counts},
        "slices": sliced(data.truth.objects, found, num_classes=count),
        "histogram": score_histogram(outcomes),
        "calibration": calibration(outcomes),
        "confusion": _confusions(matrix, data.classes),
        "matrix": _shown(matrix, data.classes),
        "worst_images": [image_row(data, judged, int(place)) for place in order if judged.mistakes[place]],
        "uncertain_images": _uncertain_rows(data, found, judged, worst=worst),
    }


def _uncertain_rows(data: InspectedData, found: CocoFound, judged: Judged, *, worst: int) -> list[dict[str, Any]]:
    """The images whose scores tell least, as ``tools/infer.py --uncertain`` orders them but for the mirror image."""
    unsure = margins(found.scores, found.images, count=len(data.truth.image_ids))
    order = np.argsort(-unsure, kind="stable")[:worst]
    return [
        {
            "image": int(data.truth.image_ids[place]),
            "file": None if data.files is None else data.files[place],
            "margin": unsure[place],
            "mistakes": int(judged.mistakes[place]),
        }
        for place in order
        if unsure[place]
    ]


def _judged(outcomes: Outcomes, keep: np.ndarray, errors: Errors, *, images: int) -> Judged:
    objects = outcomes.objects
    seen = np.zeros(len(objects.labels), dtype=bool)
    seen[outcomes.taken[keep & outcomes.right[:, 0], 0]] = True
    wrong = outcomes.found.images[keep & outcomes.wrong]
    lost = objects.images[~seen & ~objects.crowd]
    mistakes = np.bincount(wrong, minlength=images) + np.bincount(lost, minlength=images)
    return Judged(outcomes, keep, errors, mistakes, seen)


def _class_rows(
    data: InspectedData, outcomes: Outcomes, points: Sequence[WorkingPoint], errors: Errors, precision: np.ndarray
) -> list[dict[str, Any]]:
    rows = []
    for label, (name, point) in enumerate(zip(data.classes, points, strict=True)):
        there, costs, curves = outcomes.totals[label] > 0, errors.class_costs[label], precision[:, :, label]
        rows.append(
            {
                "class": name,
                "objects": int(outcomes.totals[label]),
                "AP": curves.mean() if there else None,
                "AP50": curves[AT_50].mean() if there else None,
                "AP75": curves[AT_75].mean() if there else None,
                **point._asdict(),
                "errors": dict(zip(KINDS, costs, strict=True)) if there else None,
                "costliest_error": KINDS[int(costs.argmax())] if there and costs.max() > 0 else None,
                "curve": curves[AT_50] if there else None,
            }
        )
    return rows


def _confusions(matrix: np.ndarray, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Every cell that is not empty, the fullest first."""
    cells = np.argwhere(matrix)
    cells = cells[np.argsort(-matrix[tuple(cells.T)], kind="stable")]
    true, detected = [*classes, BACKGROUND], [*classes, MISSED]
    return [{"true": true[i], "detected": detected[j], "count": int(matrix[i, j])} for i, j in cells.tolist()]


def _shown(matrix: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """The part of the matrix that the page has room for; what the other classes are taken for is left out."""
    wrong = matrix.sum(0)[:-1] + matrix.sum(1)[:-1] - 2 * matrix.diagonal()[:-1]
    chosen = np.sort(np.argsort(-wrong, kind="stable")[:SHOWN_CLASSES])
    places = np.append(chosen, len(classes))
    return {"classes": [classes[label] for label in chosen], "rows": matrix[np.ix_(places, places)]}


def image_row(data: InspectedData, judged: Judged, place: int) -> dict[str, Any]:
    """What is wrong in an image.

    Args:
        data: ground truth.
        judged: the detector.
        place: of the image among the rising ids.
    """
    outcomes, objects = judged.outcomes, judged.outcomes.objects
    wrong = np.flatnonzero(judged.keep & outcomes.wrong & (outcomes.found.images == place))
    wrong = wrong[np.argsort(-outcomes.found.scores[wrong], kind="stable")]
    lost = np.flatnonzero(~judged.found_objects & ~objects.crowd & (objects.images == place))
    return {
        "image": int(data.truth.image_ids[place]),
        "file": None if data.files is None else data.files[place],
        "mistakes": int(judged.mistakes[place]),
        "missed": [data.classes[label] for label in objects.labels[lost]],
        "wrong": [
            {
                "class": data.classes[outcomes.found.labels[row]],
                "score": outcomes.found.scores[row],
                "kind": KINDS[judged.errors.kinds[row]],
            }
            for row in wrong
        ],
    }


def _comparison(
    data: InspectedData, judged: Mapping[str, Judged], *, worst: int, resamples: int, seed: int
) -> dict[str, Any]:
    (first, a), (second, b) = judged.items()
    images = len(data.truth.image_ids)
    result = compare(a.outcomes, b.outcomes, images=images, resamples=resamples, seed=seed)
    rows = [
        {
            "class": name,
            "images": result.class_images[label],
            **result.class_AP[label]._asdict(),
            "verdict": result.verdict(label),
        }
        for label, name in enumerate(data.classes)
    ]
    change = b.mistakes - a.mistakes
    order = [int(place) for place in np.argsort(-np.abs(change), kind="stable")[:worst] if change[place]]
    return {
        "first": first,
        "second": second,
        "level": LEVEL,
        "least_images": LEAST_IMAGES,
        "resamples": resamples,
        "seed": seed,
        "AP": result.AP,
        "AP50": result.AP50,
        "classes": rows,
        "won": [row["class"] for row in rows if row["verdict"] == "won"],
        "lost": [row["class"] for row in rows if row["verdict"] == "lost"],
        "changed_images": [
            {
                "image": int(data.truth.image_ids[place]),
                "file": None if data.files is None else data.files[place],
                "first_mistakes": int(a.mistakes[place]),
                "second_mistakes": int(b.mistakes[place]),
                "change": int(change[place]),
            }
            for place in order
        ],
    }
