from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from resdet.datasets.region_sampling import draw_regions
from resdet.errors import InputError
from resdet.structures import Target

OBJECT, HALF, LESS, FAR = [0.0, 0, 10, 10], [0.0, 0, 10, 5], [0.0, 0, 10, 4], [50.0, 50, 60, 60]


def target(*rows: tuple[int, list[float], bool]) -> Target:
    labels, boxes, ignore = zip(*rows, strict=True) if rows else ((), (), ())
    boxes = torch.tensor(boxes).reshape(-1, 4)
    return Target(boxes, torch.tensor(labels, dtype=torch.long), torch.tensor(ignore, dtype=torch.bool), 5, (64, 64))


def draw(proposals: list[list[float]], of: Target, count: int, *, seed: int = 0, **settings):
    generator = np.random.default_rng(seed)
    return draw_regions(torch.tensor(proposals).reshape(-1, 4), of, count=count, generator=generator, **settings)


def test_by_hand():
    # IoU 0.5 is positive, 0.4 is not; the object itself is a candidate.
    found = draw([HALF, LESS, FAR], target((3, OBJECT, False)), 4, positive_fraction=0.5)
    assert found.label == 3 and found.positive.tolist() == [True, True, False, False]
    assert sorted(found.boxes[:2].tolist()) == [HALF, OBJECT] and sorted(found.boxes[2:].tolist()) == [LESS, FAR]
    assert_close(found.matched_gt_boxes, torch.tensor([OBJECT] * 4))


def test_goals_are_the_nearest_object_of_the_class():
    near_far = [50.0, 50, 60, 58]
    of = target((1, FAR, True), (3, OBJECT, False), (1, HALF, False), (3, FAR, False))
    found = draw([HALF, near_far], of, 8)
    goals = dict(zip(map(tuple, found.boxes.tolist()), found.matched_gt_boxes.tolist(), strict=True))
    assert goals == {tuple(HALF): OBJECT, tuple(near_far): FAR, tuple(OBJECT): OBJECT, tuple(FAR): FAR}


def test_shares():
    many = [[0.0, 0, 10, 10 - 0.1 * i] for i in range(20)] + [[40.0 + 0.5 * i, 0, 60, 20] for i in range(30)]
    of = target((0, OBJECT, False))
    assert draw(many, of, 16).positive.sum() == 4
    assert draw(many[:1] + many[20:], of, 16).positive.sum() == 2  # a proposal and the object; 14 others
    crowded = draw(many[:20] + many[-3:], of, 16)  # three others only
    assert len(crowded.boxes) == 16 and crowded.positive.sum() == 13
    assert len(draw(many[:2], of, 16).boxes) == 3
    rows = {tuple(box) for box in draw(many, of, 16).boxes.tolist()}
    assert len(rows) == 16  # none twice


def test_shares_of_few_regions_hold_on_average():
    positives = [draw([HALF, FAR], target((0, OBJECT, False)), 1, seed=seed).positive.sum() for seed in range(400)]
    assert abs(sum(positives) / 400 - 0.25) < 0.06  # nearly three standard deviations, sqrt(3 / 16 / 400) each
    pairs = [draw([HALF, LESS, FAR], target((0, OBJECT, False)), 2, seed=seed).positive.sum() for seed in range(400)]
    assert abs(sum(pairs) / 400 - 0.5) < 0.08


def test_the_generator_decides():
    many = [[float(i), 0, 60, 20] for i in range(40)]
    of = target((0, OBJECT, False))
    assert_close(draw(many, of, 8, seed=3), draw(many, of, 8, seed=3))
    assert not torch.equal(draw(many, of, 8, seed=3).boxes, draw(many, of, 8, seed=4).boxes)


def test_without_proposals_the_object_is_left():
    found = draw([], target((2, OBJECT, False)), 8)
    assert_close(found.boxes, torch.tensor([OBJECT]))
    assert found.positive.tolist() == [True]


def test_empty_boxes_are_no_regions():
    nothing, line = [0.0, 0, 0, 0], [5.0, 0, 5, 9]
    assert sorted(draw([nothing, FAR, line], target((2, OBJECT, False)), 8).boxes.tolist()) == [OBJECT, FAR]


@pytest.mark.parametrize("rows", [(), ((1, OBJECT, True),)])
def test_no_object(rows):
    with pytest.raises(InputError, match="target of image 5\n  found:  no object"):
        draw([HALF], target(*rows), 4)
