from __future__ import annotations

import numpy as np
import pytest

from resdet.evaluation.coco_curves import RECALLS, CocoFound, CocoObjects
from resdet.inspection import outcomes as module
from resdet.inspection.outcomes import (
    calibration,
    confusion,
    judge,
    kept,
    score_histogram,
    working_points,
)


def outcomes_of(objects, detections, *, classes=1, crowd=()):
    """Of objects (label, x) and detections (label, x, score) of 10 x 10 pixels in image 0."""
    labels, xs = np.array(objects, dtype=int).reshape(-1, 2).T
    rows = np.array(detections, dtype=float).reshape(-1, 3)
    boxes, found = (np.tile([0.0, 0, 10, 10], (len(x), 1)) for x in (xs, rows))
    boxes[:, 0], found[:, 0] = xs, rows[:, 1]
    truth = CocoObjects(boxes, boxes[:, 2:].prod(1), np.isin(np.arange(len(xs)), crowd), labels, 0 * labels)
    detected = CocoFound(found, rows[:, 2], rows[:, 0].astype(int), np.zeros(len(rows), dtype=int))
    return judge(truth, detected, num_classes=classes)


def test_the_outcome_of_each_detection():
    # By class, then score: class 0 right, wrong (again), class 1 in a crowd.
    outcomes = outcomes_of([(0, 0), (0, 50), (1, 100)], [(1, 100, 0.3), (0, 0, 0.8), (0, 0, 0.9)], classes=2, crowd=[2])
    assert outcomes.found.scores.tolist() == [0.9, 0.8, 0.3]
    assert outcomes.taken[:, 0].tolist() == [0, -1, 2]
    assert outcomes.right[:, 0].tolist() == [True, False, False]
    assert outcomes.wrong.tolist() == [False, True, False]
    assert outcomes.totals.tolist() == [2, 0]
    assert outcomes.starts.tolist() == [0, 2, 3]


def test_only_the_best_hundred_are_there():
    outcomes = outcomes_of([(0, 0)], [(0, 0, score / 200) for score in range(1, 102)])
    assert len(outcomes.taken) == 100
    assert outcomes.found.scores.min() == 2 / 200


def test_reached_is_a_search():
    fractions = np.concatenate([RECALLS, [p / q for q in range(1, 120) for p in range(q + 1)]])
    np.testing.assert_array_equal(module._reached(fractions), np.searchsorted(RECALLS, fractions, side="right"))


def test_working_point():
    # Of 2 objects: right, wrong, right, wrong. F1 = 2 TP / (kept + 2): 2/3, 2/4, 4/5, 4/6.
    found = [(0, 0, 0.9), (0, 500, 0.8), (0, 50, 0.7), (0, 600, 0.6)]
    outcomes = outcomes_of([(0, 0), (0, 50)], found)
    (point,) = working_points(outcomes)
    assert point == pytest.approx((0.7, 2 / 3, 1, 0.8))
    assert kept(outcomes, [point]).tolist() == [True, True, True, False]


def test_equal_scores_are_kept_together():
    # Right and wrong both at 0.9: F1 of both, 2/3, though the first alone would have 1.
    (point,) = working_points(outcomes_of([(0, 0)], [(0, 0, 0.9), (0, 500, 0.9)]))
    assert point == pytest.approx((0.9, 0.5, 1, 2 / 3))


def test_no_working_point():
    outcomes = outcomes_of([(0, 0)], [(0, 500, 0.9), (1, 0, 0.8)], classes=3)
    points = working_points(outcomes)
    assert points == [(None, None, None, None)] * 3
    assert not kept(outcomes, points).any()


def test_confusion():
    # Class 0 right at 0; class 1 on the other object of class 0; class 1 on nothing; the object of class 1 missed. The
    # second detection of class 0 at 0 finds no free object: background. What is not kept does not count.
    objects = [(0, 0), (0, 50), (1, 100)]
    found = [(0, 0, 0.9), (0, 0, 0.8), (1, 50, 0.7), (1, 500, 0.6), (1, 100, 0.1)]
    outcomes = outcomes_of(objects, found, classes=2)
    matrix = confusion(outcomes, outcomes.found.scores > 0.5)
    assert matrix.tolist() == [[1, 1, 0], [0, 0, 1], [1, 1, 0]]


def test_confusion_without_detections():
    outcomes = outcomes_of([(0, 0)], [])
    assert confusion(outcomes, np.zeros(0, dtype=bool)).tolist() == [[0, 1], [0, 0]]


def test_histogram_and_calibration():
    # Bin 0.9 to 1: scores 1.0 and 0.92, one right: 1.92 - 1 too much. Bin 0.1 to 0.2: 0.1, right: 0.9 too little.
    outcomes = outcomes_of([(0, 0), (0, 50)], [(0, 0, 1.0), (0, 500, 0.92), (0, 50, 0.1)])
    histogram = score_histogram(outcomes)
    assert np.flatnonzero(histogram["right"]).tolist() == [2, 19]
    assert np.flatnonzero(histogram["wrong"]).tolist() == [18]
    table = calibration(outcomes)
    assert table["bins"][9] == pytest.approx({"from": 0.9, "to": 1.0, "detections": 2, "score": 0.96, "precision": 0.5})
    assert [row["detections"] for row in table["bins"]] == [0, 1, 0, 0, 0, 0, 0, 0, 0, 2]
    assert table["ece"] == pytest.approx((0.92 + 0.9) / 3)
    assert calibration(outcomes_of([(0, 0)], []))["ece"] is None
