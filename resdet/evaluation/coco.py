"""Average precision of COCO (Lin et al. 2014): the twelve figures, per class too.

The curves are our own (:mod:`resdet.evaluation.coco_curves`), the same as pycocotools' to the last bit; pycocotools
itself can be asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from resdet.errors import InputError
from resdet.evaluation.coco_curves import MOST, CocoFound, coco_curves, cut_short
from resdet.evaluation.coco_rows import CocoTruth, read_found, read_truth

logger = logging.getLogger(__name__)
BACKENDS = ("arrays", "pycocotools")
ALL_AREAS, AT_50, AT_75, MOST_DETECTIONS = 0, 0, 5, 2  # places of "all", IoU 0.5 and 0.75, 100 detections in the curves


class CocoClass(NamedTuple):
    """One row of the per-class table."""

    name: str
    AP: float | None
    """Mean over IoU 0.50:0.95; None where the class has no ground truth."""
    AP50: float | None
    boxes: int
    """Ground-truth boxes that count, so without crowds."""


class CocoFigures(NamedTuple):
    """The summary of COCO, in its order. Fractions; -1 where no ground truth has that size, as pycocotools says it."""

    AP: float
    AP50: float
    AP75: float
    APs: float
    APm: float
    APl: float
    AR1: float
    AR10: float
    AR100: float
    ARs: float
    ARm: float
    ARl: float
    per_class: tuple[CocoClass, ...]
    """In the order of the ground truth's categories."""


SIZE_BOUNDS = (32.0, 96.0)
"""COCO's: the sides of the squares whose areas divide small, medium and large."""


def evaluate_coco(
    ground_truth: dict | CocoTruth,
    results: Sequence[dict] | np.ndarray | CocoFound,
    *,
    backend: str = "arrays",
    size_bounds: tuple[float, float] = SIZE_BOUNDS,
    max_detections: int = MOST,
) -> CocoFigures:
    """The COCO figures of boxes, the same to the last digit as those of pycocotools.

    The arguments are not changed. A class whose only box is found scores 1 - 2e-16, as in pycocotools, which divides by
    the count plus the spacing of floats.

    Args:
        ground_truth: a COCO annotation file as a dictionary, or what :func:`read_truth` made of it.
        results: as for :func:`read_found`, or what it made of them. It may be empty: figures are then 0.
        backend: "arrays" (ours) or "pycocotools".
        size_bounds: sides in pixels that divide small, medium and large.
        max_detections: of an image and class that are looked at; more are passed over with a warning. AR100 and the
            recalls by size are of so many.

    Raises:
        InputError: as :func:`read_truth` and :func:`read_found`; a backend that is unknown.
    """
    if backend not in BACKENDS:
        raise InputError("evaluation backend", found=repr(backend), needed=f"one of: {', '.join(BACKENDS)}")
    truth = ground_truth if isinstance(ground_truth, CocoTruth) else read_truth(ground_truth)
    found = results if isinstance(results, CocoFound) else read_found(results, truth)
    small, large = (side**2 for side in size_bounds)
    if cut := cut_short(found, len(truth.names), max_detections):
        told = "%d detections are not looked at: beyond the best %d of an image and class (test.max_detections)"
        logger.warning(told, cut, max_detections)
    if backend == "arrays":
        precision, recall = coco_curves(
            truth.objects, found, num_classes=len(truth.names), bounds=(small, large), most=max_detections
        )
    else:
        from resdet.evaluation.coco_reference import pycocotools_curves  # which imports matplotlib

        precision, recall = pycocotools_curves(truth, found, bounds=(small, large), most=max_detections)
    sizes = range(1, precision.shape[3])
    figures = [_mean(precision[at, :, :, ALL_AREAS]) for at in (slice(None), AT_50, AT_75)]
    figures += [_mean(precision[..., size]) for size in sizes]
    figures += [_mean(recall[:, :, ALL_AREAS, most]) for most in range(recall.shape[3])]
    figures += [_mean(recall[:, :, size, MOST_DETECTIONS]) for size in sizes]
    boxes = np.bincount(truth.objects.labels[~truth.objects.crowd], minlength=len(truth.names)).tolist()
    per_class = {}
    for place, key in enumerate(sorted(truth.names)):
        curves = precision[:, :, place, ALL_AREAS]
        per_class[key] = CocoClass(truth.names[key], _mean(curves), _mean(curves[AT_50]), boxes[place])
    known = [-1.0 if figure is None else figure for figure in figures]
    return CocoFigures._make([*known, tuple(per_class[key] for key in truth.names)])


def _mean(precision: np.ndarray) -> float | None:
    """Mean of what is defined (pycocotools writes -1 for a class without ground truth)."""
    defined = precision[precision > -1]
    return float(defined.mean()) if defined.size else None
