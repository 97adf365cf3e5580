from __future__ import annotations

import numpy as np
import pytest

from resdet.benchmarks.evaluation import evaluation_case
from resdet.evaluation.coco import evaluate_coco
from resdet.evaluation.coco_curves import CocoFound, CocoObjects
from resdet.evaluation.coco_rows import CocoTruth, read_found, read_truth
from resdet.inspection import bootstrap as module
from resdet.inspection.bootstrap import Comparison, Difference, compare, draw_images, resampled
from resdet.inspection.outcomes import judge


def outcomes_of(found_in, *, images=2):
    """One object in each image, exactly found in some."""
    box, zeros = np.tile([0.0, 0, 10, 10], (images, 1)), np.zeros(images, dtype=int)
    truth = CocoObjects(box, np.full(images, 100.0), zeros > 0, zeros, np.arange(images))
    where = np.array(found_in, dtype=int)
    found = CocoFound(box[: len(where)], np.full(len(where), 0.9), 0 * where, where)
    return judge(truth, found, num_classes=1)


def test_draws_by_hand():
    # Found in image 0 only. Twice image 0: 1. Each once: half of the objects, 51 of 101 recalls. Twice image 1: 0.
    draws = np.array([[2, 1, 0], [0, 1, 2]], dtype=np.int32)
    figures = resampled(outcomes_of([0]), draws)
    np.testing.assert_allclose(figures, np.broadcast_to([1, 51 / 101, 0], (2, 1, 3)), atol=1e-12)


def test_a_difference_by_hand():
    # Three of the four equally likely pairs of images hold image 1, which the second finds, the first does not: gains
    # 0 (twice image 0), 50/101 (both), 1 (twice image 1). Of 500 draws each comes up, so the interval is 0 to 1.
    result = compare(outcomes_of([0]), outcomes_of([0, 1]), images=2, resamples=500, seed=0)
    assert pytest.approx((51 / 101, 1, 50 / 101, 0, 1)) == result.AP
    assert result.class_AP[0] == result.AP
    assert pytest.approx(result.AP) == result.AP50
    assert result.class_images == [2]


def test_a_draw_scores_as_the_images_it_holds():
    content, table = evaluation_case(12, 30, 3)
    truth = read_truth(content)
    found = read_found(table, truth)
    assert truth.objects.crowd.any()
    draws = draw_images(12, resamples=5, seed=3)
    figures = resampled(judge(truth.objects, found, num_classes=3), draws)
    for number, counts in enumerate(draws.T):
        chosen = np.repeat(np.arange(12), counts)
        copies = [
            type(table)(*(np.concatenate([field[table.images == image] for image in chosen]) for field in table))
            for table in (truth.objects, found)
        ]
        renumbered = [
            part._replace(images=np.repeat(np.arange(12), [np.sum(table.images == image) for image in chosen]))
            for part, table in zip(copies, (truth.objects, found), strict=True)
        ]
        expected = evaluate_coco(CocoTruth(np.arange(12), truth.names, renumbered[0]), renumbered[1]).per_class
        np.testing.assert_allclose(figures[0, :, number], [row.AP for row in expected], atol=1e-12)
        np.testing.assert_allclose(figures[1, :, number], [row.AP50 for row in expected], atol=1e-12)


def test_each_image_once_is_COCOs_figure():
    content, table = evaluation_case(40, 30, 4)
    truth = read_truth(content)
    found = read_found(table, truth)
    expected = evaluate_coco(truth, found).per_class
    figures = resampled(judge(truth.objects, found, num_classes=4), np.ones((40, 1), dtype=np.int32))
    np.testing.assert_allclose(figures[0, :, 0], [row.AP for row in expected], rtol=0, atol=1e-12)
    np.testing.assert_allclose(figures[1, :, 0], [row.AP50 for row in expected], rtol=0, atol=1e-12)


def test_more_draws_than_are_worked_on_at_once():
    outcomes, draws = outcomes_of([0, 2, 3], images=5), draw_images(5, resamples=300, seed=0)
    parts = [resampled(outcomes, draws[:, some]) for some in (slice(0, 7), slice(7, 300))]
    np.testing.assert_array_equal(resampled(outcomes, draws), np.concatenate(parts, axis=2))


def test_draws_are_of_all_images_and_seeded():
    draws = draw_images(7, resamples=20, seed=1)
    assert draws.shape == (7, 20)
    assert (draws.sum(0) == 7).all()
    np.testing.assert_array_equal(draws, draw_images(7, resamples=20, seed=1))
    assert (draws != draw_images(7, resamples=20, seed=2)).any()


def test_a_detector_against_itself():
    outcomes = outcomes_of([0, 2], images=4)
    assert compare(outcomes, outcomes, images=4, resamples=50, seed=0).AP[2:] == (0, 0, 0)


def test_the_interval_holds_the_middle_of_the_draws():
    drawn, zero = np.arange(1001) / 1000, np.zeros(1001)
    assert module._difference(zero[:1], zero[:1] + 0.5, zero, drawn) == pytest.approx((0, 0.5, 0.5, 0.025, 0.975))


def test_verdicts():
    gap, none = Difference(0.1, 0.3, 0.2, 0.1, 0.3), Difference(None, None, None, None, None)
    lost, open_end = Difference(0.3, 0.1, -0.2, -0.3, -0.1), Difference(0.1, 0.3, 0.2, -0.1, 0.3)
    result = Comparison(gap, gap, [gap, lost, open_end, gap, none], [10, 10, 10, 9, 0])
    assert [result.verdict(label) for label in range(5)] == ["won", "lost", "", "", ""]


def test_a_class_without_objects():
    outcomes = judge(*outcomes_of([0])[:2], num_classes=2)
    result = compare(outcomes, outcomes, images=2, resamples=10, seed=0)
    assert result.class_AP[1] == (None,) * 5
    assert result.AP[0] == result.class_AP[0][0] == pytest.approx(51 / 101)
    assert result.class_images == [2, 0]
