from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from resdet import boxes as box_ops
from resdet.detection.soft_nms import gaussian, group_table, linear, soft_nms

ROW = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 4], [20, 0, 30, 10]])
"""IoU of the first with the others: 0.8, 0.4, 0; of the second with the third: 0.5."""


def test_factors():
    overlaps = torch.tensor([0.0, 0.5, 0.6, 1.0])
    assert_close(linear(overlaps, 0.5), torch.tensor([1.0, 1.0, 0.4, 0.0]))  # exactly at the limit: spared
    # exp(-0 / 0.5), exp(-0.25 / 0.5), exp(-0.36 / 0.5), exp(-1 / 0.5)
    assert_close(gaussian(overlaps, 0.5), torch.tensor([1.0, 0.606531, 0.486752, 0.135335]))
    assert_close(overlaps, torch.tensor([0.0, 0.5, 0.6, 1.0]))  # not written over


def test_linear_by_hand():
    scores = torch.tensor([0.9, 0.8, 0.7, 0.3])
    run = partial(soft_nms, ROW, scores, torch.zeros(4, dtype=torch.long))
    # Round 1 picks 0.9: 0.8 x (1 - 0.8) = 0.16, 0.7 stays (IoU 0.4 is not above 0.45), 0.3 stays.
    # Round 2 picks 0.7: its IoU with the second is 0.5, so 0.16 x 0.5 = 0.08. Then 0.3, then 0.08.
    kept, decayed = run(decay=partial(linear, nms_iou=0.45), score_threshold=0.05, max_per_group=100)
    assert kept.tolist() == [0, 2, 3, 1]
    assert_close(decayed[kept], torch.tensor([0.9, 0.7, 0.3, 0.08]))
    # Where 0.5 is the limit the second round spares the second box.
    kept, decayed = run(decay=partial(linear, nms_iou=0.5), score_threshold=0.05, max_per_group=100)
    assert_close(decayed[kept], torch.tensor([0.9, 0.7, 0.3, 0.16]))
    assert run(decay=partial(linear, nms_iou=0.45), score_threshold=0.1, max_per_group=100)[0].tolist() == [0, 2, 3]
    kept, decayed = run(decay=partial(linear, nms_iou=0.45), score_threshold=0.05, max_per_group=2)
    assert kept.tolist() == [0, 2]
    assert_close(decayed, torch.tensor([0.9, -math.inf, 0.7, -math.inf]))


def test_gaussian_by_hand():
    kept, decayed = soft_nms(
        ROW[:3],
        torch.tensor([0.9, 0.8, 0.7]),
        torch.zeros(3, dtype=torch.long),
        decay=partial(gaussian, sigma=0.5),
        score_threshold=0.1,
        max_per_group=100,
    )
    # Picks 0.9: 0.8 exp(-0.64 / 0.5) = 0.8 x 0.278037 = 0.222430; 0.7 exp(-0.16 / 0.5) = 0.7 x 0.726149 = 0.508304.
    # Picks 0.508304: 0.222430 exp(-0.25 / 0.5) = 0.222430 x 0.606531 = 0.134911.
    assert kept.tolist() == [0, 2, 1]
    assert_close(decayed, torch.tensor([0.9, 0.134911, 0.508304]))


def test_threshold_is_to_be_exceeded():
    # IoU 0.6 decays the second box to 0.4 (or just that in float32); the other group lives longer.
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 6], [20, 0, 30, 10], [40, 0, 50, 10]])
    scores, groups = torch.ones(4), torch.tensor([0, 0, 1, 1])
    run = partial(soft_nms, boxes, scores, groups, decay=partial(linear, nms_iou=0.5), max_per_group=100)
    _, decayed = run(score_threshold=0.0)
    assert run(score_threshold=decayed[1].item())[0].tolist() == [0, 2, 3]
    assert run(score_threshold=decayed[1].item() - 1e-6)[0].tolist() == [0, 2, 3, 1]


def test_groups_of_unequal_size():
    # The best box is the last of all and stands in the longer group: the shorter one must not see it.
    scores, groups = torch.tensor([0.1, 0.2, 0.9]), torch.tensor([0, 1, 1])
    kept, _ = soft_nms(
        ROW[[0, 3, 0]], scores, groups, decay=partial(linear, nms_iou=0.5), score_threshold=0.0, max_per_group=9
    )
    assert kept.tolist() == [2, 1, 0]


def test_stops_when_nothing_is_left_above_the_threshold():
    rounds = []

    def drop(overlaps):
        rounds.append(overlaps)
        return torch.zeros_like(overlaps)

    soft_nms(ROW, torch.ones(4), torch.zeros(4, dtype=torch.long), decay=drop, score_threshold=0.05, max_per_group=100)
    assert len(rounds) == 1


def test_ties_take_the_lower_index():
    # Six equal boxes of equal score: the first picked of each group takes the rest to 0.
    boxes, groups = ROW[:1].expand(6, 4), torch.tensor([1, 0, 1, 0, 0, 1])
    kept, decayed = soft_nms(
        boxes, torch.full((6,), 0.5), groups, decay=partial(linear, nms_iou=0.5), score_threshold=0.0, max_per_group=9
    )
    assert kept.tolist() == [0, 1]  # also across the groups, where the group of 1 comes first
    assert_close(decayed[kept], torch.full((2,), 0.5))


def slow_soft_nms(boxes, scores, groups, decay, threshold, most):
    """One group, one box at a time."""
    answer = []
    for group in sorted(set(groups.tolist())):
        left = {i: scores[i].item() for i in range(len(boxes)) if groups[i] == group}
        picked = 0
        while left and picked < most:
            best = min(left, key=lambda i: (-left[i], i))
            score = left.pop(best)
            if score <= threshold:
                break
            answer.append((score, best))
            picked += 1
            for i in left:
                left[i] *= decay(box_ops.iou(boxes[best][None], boxes[i][None])).item()
    return sorted(answer, key=lambda pair: (-pair[0], pair[1]))


@pytest.mark.parametrize("decay", [partial(linear, nms_iou=0.3), partial(gaussian, sigma=0.5)], ids=["lin", "gauss"])
@pytest.mark.parametrize("most", [100, 3])
@pytest.mark.parametrize("groups", [1, 7])
def test_equals_the_slow_way(decay, most, groups):
    generator = torch.Generator().manual_seed(1)
    corner = torch.rand(60, 2, generator=generator) * 30
    boxes = torch.cat([corner, corner + 8 + torch.rand(60, 2, generator=generator) * 20], dim=1)
    scores = torch.rand(60, generator=generator)
    scores[20:30] = scores[:10]  # ties, on boxes of their own
    boxes[30:33], scores[30:33] = boxes[:3], scores[:3]  # and on the same boxes
    group = (torch.rand(60, generator=generator).square() * groups).long() * 3  # unequal sizes, ids with holes
    kept, decayed = soft_nms(boxes, scores, group, decay=decay, score_threshold=0.1, max_per_group=most)
    expected = slow_soft_nms(boxes, scores, group, decay, 0.1, most)
    assert kept.tolist() == [i for _, i in expected]
    assert_close(decayed[kept], torch.tensor([score for score, _ in expected]))
    assert 0 < len(kept) < 60 and (most == 3 or (decayed[kept] < scores[kept]).sum() > 3)


def test_group_table():
    table = group_table(torch.tensor([0.1, 0.5, 0.5, 0.9, 0.2]), torch.tensor([7, 4, 4, 4, 7]))
    assert table.tolist() == [[3, 1, 2], [4, 0, -1]]
    table = group_table(torch.tensor([0.1, 0.5, 0.5, 0.9, 0.2]), torch.tensor([4, 7, 7, 7, 4]))
    assert table.tolist() == [[3, 1, 2], [4, 0, -1]]  # the longest first, whatever its id
    table = group_table(torch.arange(6.0), torch.tensor([0, 0, 1, 2, 2, 2]))
    assert table.tolist() == [[5, 4, 3], [1, 0, -1], [2, -1, -1]]


def test_no_boxes():
    none = torch.zeros(0, dtype=torch.long)
    assert group_table(torch.zeros(0), none).shape == (0, 0)
    kept, decayed = soft_nms(
        torch.zeros(0, 4), torch.zeros(0), none, decay=partial(linear, nms_iou=0.5), score_threshold=0, max_per_group=9
    )
    assert kept.dtype == torch.int64 and kept.shape == decayed.shape == (0,)
