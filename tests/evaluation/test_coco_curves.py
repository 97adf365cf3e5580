from __future__ import annotations

import numpy as np
import pytest

from resdet.evaluation import coco_curves as module
from resdet.evaluation.coco_curves import CocoFound, CocoObjects, coco_curves, taken_objects
from resdet.evaluation.coco_reference import pycocotools_curves
from resdet.evaluation.coco_rows import CocoTruth

BOUNDS = (32.0**2, 96.0**2)


def objects_of(*boxes, crowd=(), labels=None, images=None, areas=None):
    boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    count = len(boxes)
    return CocoObjects(
        boxes,
        boxes[:, 2:].prod(1) if areas is None else np.array(areas, dtype=np.float64),
        np.isin(np.arange(count), crowd),
        np.zeros(count, dtype=np.int64) if labels is None else np.array(labels),
        np.zeros(count, dtype=np.int64) if images is None else np.array(images),
    )


def found_of(*rows):
    """Of rows (x, y, w, h, score), in image 0 and of class 0."""
    table = np.array(rows, dtype=np.float64).reshape(-1, 5)
    zeros = np.zeros(len(table), dtype=np.int64)
    return CocoFound(table[:, :4], table[:, 4], zeros, zeros)


def reference(objects, found, num_classes, bounds=BOUNDS, images=50):
    names = {3 * label + 1: str(label) for label in range(num_classes)}
    truth = CocoTruth(7 * np.arange(images), names, objects)
    return pycocotools_curves(truth, found, bounds=bounds)


def assert_same(objects, found, num_classes, bounds=BOUNDS):
    ours = coco_curves(objects, found, num_classes=num_classes, bounds=bounds)
    for mine, expected in zip(ours, reference(objects, found, num_classes, bounds), strict=True):
        np.testing.assert_array_equal(mine, expected)


def random_case(seed):
    """Every kind of case by turns: few or many classes, ties, twins, crowds, empty boxes, more than 100 detections."""
    rng = np.random.default_rng(seed)
    images, classes = int(rng.integers(1, 12)), int(rng.choice([1, 2, 7]))
    count = int(rng.integers(1, 60))
    grid = rng.choice([1.0, 8.0, 0.01])  # whole coordinates make equal overlaps
    boxes = np.concatenate([rng.uniform(0, 80, (count, 2)), rng.choice([20, 60, 150]) * rng.random((count, 2))], axis=1)
    boxes = np.round(boxes / grid) * grid
    boxes[rng.random(count) < 0.2] = boxes[0]
    labels, where = rng.integers(0, classes, count), rng.integers(0, images, count)
    crowd = np.flatnonzero(rng.random(count) < rng.choice([0, 0.3, 1]))
    areas = boxes[:, 2:].prod(1) * rng.choice([1, 0.5])
    objects = objects_of(*boxes, crowd=crowd, labels=labels, images=where, areas=areas)
    number = int(rng.choice([0, 5, 80, 400]))
    near = rng.integers(0, count, number)
    shifted = boxes[near] + np.round(rng.normal(0, rng.choice([0, 3, 20]), (number, 4)) / grid) * grid
    other = rng.random(number) < 0.2
    found = CocoFound(
        np.concatenate([shifted[:, :2], shifted[:, 2:].clip(0)], axis=1),
        np.round(rng.random(number), int(rng.choice([1, 5]))),
        np.where(other, rng.integers(0, classes, number), labels[near]),
        np.where(other, rng.integers(0, images, number), where[near]),
    )
    return objects, found, classes


def test_by_hand():
    objects = objects_of([0, 0, 10, 10], [20, 0, 10, 10])
    found = found_of([0, 0, 10, 8, 0.9], [50, 0, 10, 10, 0.8], [20, 0, 10, 10, 0.7])
    # The first overlaps by 80 / 100: right at the 7 thresholds up to 0.8. The second is wrong, the third right.
    # To 0.8: precision 1 at the 51 recalls up to 1/2, then 2/3. Beyond: 1/3 at the same recalls, then nothing.
    precision, recall = coco_curves(objects, found, num_classes=1, bounds=BOUNDS)
    assert precision.shape == (10, 101, 1, 4) and recall.shape == (10, 1, 4, 3)
    np.testing.assert_allclose(precision[6, :, 0, 0], [1] * 51 + [2 / 3] * 50)
    np.testing.assert_allclose(precision[7, :, 0, 0], [1 / 3] * 51 + [0] * 50)
    np.testing.assert_array_equal(recall[6, 0, 0], [0.5, 1, 1])  # the best one alone, 10, 100
    np.testing.assert_array_equal(precision[..., 1], precision[..., 0])  # all are small
    assert (precision[..., 2:] == -1).all() and (recall[:, :, 2:] == -1).all()


def test_a_crowd_takes_any_number_and_counts_for_nothing():
    objects = objects_of([0, 0, 10, 10], [100, 0, 100, 100], crowd=[1])
    found = found_of([110, 10, 10, 10, 0.9], [130, 10, 10, 10, 0.8], [0, 0, 10, 10, 0.7], [120, 0, 80, 80, 0.6])
    precision, recall = coco_curves(objects, found, num_classes=1, bounds=BOUNDS)
    np.testing.assert_allclose(precision[:, :, 0, 0], 1)
    assert (recall[:, 0, 0] == [0, 1, 1]).all()  # the best detection lies in the crowd


@pytest.mark.parametrize("seed", range(60))
def test_equals_pycocotools_to_the_last_bit(seed):
    assert_same(*random_case(seed))


def test_other_bounds():
    assert_same(*random_case(3), bounds=(10.0**2, 40.0**2))


def test_blocks_of_pairs_change_nothing(monkeypatch):
    objects, found, classes = random_case(11)
    expected = coco_curves(objects, found, num_classes=classes, bounds=BOUNDS)
    for limit in (1, 7, 100):
        monkeypatch.setattr(module, "PAIRS_AT_ONCE", limit)
        ours = coco_curves(objects, found, num_classes=classes, bounds=BOUNDS)
        for mine, whole in zip(ours, expected, strict=True):
            np.testing.assert_array_equal(mine, whole)


def test_the_order_of_rows_does_not_matter_without_ties():
    objects, found, classes = random_case(8)
    rng = np.random.default_rng(0)
    found = found._replace(scores=rng.permutation(len(found.scores)) / 1000)
    mixed = CocoFound(*(field[order] for order in [rng.permutation(len(found.scores))] for field in found))
    ours = [coco_curves(objects, f, num_classes=classes, bounds=BOUNDS) for f in (found, mixed)]
    for a, b in zip(*ours, strict=True):
        np.testing.assert_array_equal(a, b)


def test_nothing_found_and_nothing_to_find():
    for objects in (objects_of([0, 0, 10, 10]), objects_of([0, 0, 10, 10], crowd=[0]), objects_of()):
        for found in (found_of(), found_of([0, 0, 10, 10, 0.5])):
            assert_same(objects, found, 2)


def test_taken_objects():
    # Overlaps with the object: 1, 2/3 (x moved by 2) and 1/3; the second takes it where 1 is not asked first.
    objects = objects_of((50, 0, 10, 10), (0, 0, 10, 10), (100, 0, 40, 40), crowd=(2,))
    found = found_of((2, 0, 10, 10, 0.9), (0, 0, 10, 10, 0.8), (110, 0, 10, 10, 0.7), (120, 0, 10, 10, 0.6))
    taken = taken_objects(objects, found, num_classes=1)
    assert taken[0].tolist() == [1] * 4 + [-1] * 6  # 0.50 to 0.65 are reached
    assert taken[1].tolist() == [-1] * 4 + [1] * 6
    assert (taken[2:] == 2).all()  # of a crowd any number


def test_taken_objects_of_the_best_hundred():
    found = found_of(*[(0, 0, 10, 10, score) for score in np.linspace(0.1, 0.9, 101)])
    taken = taken_objects(objects_of((0, 0, 10, 10)), found, num_classes=1)
    assert taken[0].tolist() == [-2] * 10
    assert (taken[1:100] == -1).all()
    assert taken[100].tolist() == [0] * 10
    assert taken_objects(objects_of(), found_of((0, 0, 1, 1, 1)), num_classes=1).tolist() == [[-1] * 10]


def test_other_measures_than_the_area():
    """Two objects of one size, of which a measure makes the first small and the second large."""
    objects = objects_of((0, 0, 10, 10), (50, 0, 10, 10), areas=(1, 9))
    found = found_of((0, 0, 10, 10, 0.9), (80, 0, 10, 10, 0.8))
    parts = {"num_classes": 1, "bounds": (3, 6), "measures": np.array([1.0, 9.0])}
    _, recall = coco_curves(objects, found, **parts)
    assert recall[0, 0, 1:, 2].tolist() == [1, -1, 0]
