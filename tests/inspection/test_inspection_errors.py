"""Each kind of error worked by hand, in one image of objects of 10 x 10 pixels.

A box moved by d pixels along one side has IoU (10 - d) / (10 + d): 1/3 for d = 5.
"""

from __future__ import annotations

import numpy as np
import pytest

from resdet.benchmarks.evaluation import evaluation_case
from resdet.evaluation.coco import evaluate_coco
from resdet.evaluation.coco_curves import CocoFound, CocoObjects
from resdet.evaluation.coco_rows import read_found, read_truth
from resdet.inspection.errors import KINDS, find_errors
from resdet.inspection.outcomes import judge


def errors_of(objects, detections, *, classes=2, crowd=()):
    """Of objects (label, x) and detections (label, x, score)."""
    labels, xs = np.array(objects).reshape(-1, 2).T
    boxes = np.stack([xs, 0 * xs, 10 + 0 * xs, 10 + 0 * xs], axis=1).astype(float)
    nowhere = np.zeros(len(xs), dtype=int)
    truth = CocoObjects(boxes, np.full(len(xs), 100.0), np.isin(np.arange(len(xs)), crowd), labels, nowhere)
    rows = np.array(detections, dtype=float).reshape(-1, 3)
    boxes = np.stack([rows[:, 1], 0 * rows[:, 1], 10 + 0 * rows[:, 1], 10 + 0 * rows[:, 1]], axis=1)
    found = CocoFound(boxes, rows[:, 2], rows[:, 0].astype(int), np.zeros(len(rows), dtype=int))
    return find_errors(judge(truth, found, num_classes=classes))


def assert_errors(errors, *, AP50, counts, **costs):
    assert pytest.approx(AP50) == errors.AP50
    assert {kind: n for kind, n in errors.counts.items() if n} == counts
    all_costs = {name.replace("_", " "): cost for name, cost in costs.items()}
    assert {name: cost for name, cost in errors.costs.items() if cost > 1e-9} == pytest.approx(all_costs)


def test_classification():
    # Class 1: wrong, right: AP 1/2. Class 0: nothing found. Mended, both are 1. Without what is wrong: 0 and 1. Without
    # what is not found class 0 has no object, and the mean is that of class 1 alone.
    errors = errors_of([(0, 0), (1, 100)], [(1, 0, 0.9), (1, 100, 0.8)])
    costs = {"classification": 0.75, "false_positives": 0.25, "false_negatives": 0.25}
    assert_errors(errors, AP50=0.25, counts={"classification": 1}, **costs)
    assert errors.class_costs[:, 0].tolist() == pytest.approx([1, 0.5])


def test_localization():
    # Of the two poor boxes the surer one is put right, the other left out.
    errors = errors_of([(0, 0)], [(0, 5, 0.9), (0, -5, 0.8)], classes=1)
    costs = {"localization": 1.0}  # to ask for no object leaves nothing to score
    assert_errors(errors, AP50=0, counts={"localization": 2}, **costs)


def test_a_poor_box_of_a_found_object_is_left_out():
    # Wrong, right: 1/2.
    errors = errors_of([(0, 0)], [(0, 5, 0.9), (0, 0, 0.8)], classes=1)
    assert_errors(errors, AP50=0.5, counts={"localization": 1}, localization=0.5, false_positives=0.5)


def test_a_poor_box_aims_at_the_nearest_object():
    # IoU 1/3 with the object at 0, 1/4 with that at 11.
    assert errors_of([(0, 0), (0, 11)], [(0, 5, 0.9)], classes=1).missed.tolist() == [False, True]
    assert errors_of([(0, 11), (0, 0)], [(0, 5, 0.9)], classes=1).missed.tolist() == [True, False]


def test_both():
    # Class 1: wrong, right: 1/2. Class 0: missed.
    errors = errors_of([(0, 0), (1, 100)], [(1, 5, 0.9), (1, 100, 0.8)])
    costs = {"both": 0.25, "missed": 0.25, "false_positives": 0.25, "false_negatives": 0.25}
    assert_errors(errors, AP50=0.25, counts={"both": 1, "missed": 1}, **costs)
    assert errors.missed.tolist() == [True, False]


def test_duplicate():
    # Right, wrong, right of two objects: precision 1 at 51 recalls up to 0.5, then 2/3 at 50.
    errors = errors_of([(0, 0), (0, 100)], [(0, 0, 0.9), (0, 0, 0.8), (0, 100, 0.7)], classes=1)
    cost = 50 * (1 / 3) / 101
    assert_errors(errors, AP50=1 - cost, counts={"duplicate": 1}, duplicate=cost, false_positives=cost)
    assert errors.kinds.tolist() == [-1, KINDS.index("duplicate"), -1]


def test_background():
    errors = errors_of([(0, 0)], [(0, 500, 0.9), (0, 0, 0.8)], classes=1)
    assert_errors(errors, AP50=0.5, counts={"background": 1}, background=0.5, false_positives=0.5)


def test_missed():
    errors = errors_of([(0, 0), (0, 100)], [(0, 0, 0.9)], classes=1)
    assert_errors(errors, AP50=51 / 101, counts={"missed": 1}, missed=50 / 101, false_negatives=50 / 101)


def test_the_costs_do_not_add_up():
    # Wrong, wrong, right: 1/3. Without the first or the second 1/2 each: 1/6 and 1/6, where both together gain 2/3.
    errors = errors_of([(0, 0)], [(0, 500, 0.9), (0, 5, 0.85), (0, 0, 0.8)], classes=1)
    counts = {"localization": 1, "background": 1}
    assert_errors(errors, AP50=1 / 3, counts=counts, localization=1 / 6, background=1 / 6, false_positives=2 / 3)


def test_a_poor_box_of_the_own_class_goes_before_another_class():
    # IoU 1/3 with the object of the own class, 1 with the other one, which is found by nobody.
    errors = errors_of([(0, 0), (1, 5)], [(0, 5, 0.9)])
    assert errors.counts["localization"] == 1
    assert errors.missed.tolist() == [False, True]


def test_one_aim_of_two_kinds_goes_to_the_surer():
    # A wrong class (0.9) and a poor box (0.8) aim at the object of class 0. To mend classes finds it, to mend
    # boxes only leaves the poor one out. The object of class 1 is found.
    errors = errors_of([(0, 0), (1, 100)], [(1, 100, 0.95), (1, 0, 0.9), (0, 5, 0.8)])
    counts = {"classification": 1, "localization": 1}
    assert_errors(errors, AP50=0.5, counts=counts, classification=0.5, false_negatives=0.5)


def test_crowds_and_nothing():
    errors = errors_of([(0, 0), (0, 100)], [(0, 0, 0.9), (0, 0, 0.8), (0, 100, 0.7)], classes=1, crowd=[0])
    assert_errors(errors, AP50=1, counts={})
    assert errors.kinds.tolist() == [-1, -1, -1]
    errors = errors_of([(1, 0), (0, 100)], [(0, 0, 0.9)], crowd=[0])  # of another class's crowd nothing is expected
    assert errors.counts["background"] == 1
    errors = errors_of([(0, 0)], [], classes=1)
    assert_errors(errors, AP50=0, counts={"missed": 1})


def test_every_wrong_detection_has_a_kind_and_AP50_is_COCOs():
    content, table = evaluation_case(40, 30, 4)
    truth = read_truth(content)
    found = read_found(table, truth)
    outcomes = judge(truth.objects, found, num_classes=4)
    errors = find_errors(outcomes)
    assert pytest.approx(evaluate_coco(truth, found).AP50, abs=1e-12) == errors.AP50
    assert ((errors.kinds >= 0) == outcomes.wrong).all()
    assert sum(errors.counts.values()) == outcomes.wrong.sum() + errors.missed.sum()
    assert min(errors.counts.values()) > 0
    assert max(errors.costs.values()) <= 1 - errors.AP50
