from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from resdet import boxes as box_ops
from resdet.inference.multiscale import adjacent_scales, embed_maxout, merge_proposals
from resdet.inference.view import flatten
from resdet.structures import ImageBatch


@pytest.mark.parametrize(
    ("sides", "first"),
    [
        ([10, 20, 30, 40], 2),  # below 224 at all scales: the two largest
        ([300, 400, 500, 600], 0),  # above: the two smallest
        ([100, 200, 300, 400], 1),  # 124 + 24, 24 + 76, 76 + 176
        ([50, 100, 150, 230], 2),  # 174 + 124, 124 + 74, 74 + 6
        ([220, 230, 900, 950], 0),
        ([100, 120, 220, 700], 1),  # 220 and 700 lie about 224, but 120 and 220 are nearer: 108 against 480
        ([124, 224, 324, 424], 0),  # 100 + 0, 0 + 100: a tie, the smaller
        ([0, 0, 0, 0], 0),  # an empty region: all alike
    ],
)
def test_adjacent_scales_by_hand(sides, first):
    assert adjacent_scales(torch.tensor([sides], dtype=torch.float32), 224.0).tolist() == [first]


def test_adjacent_scales_of_one_and_of_none():
    assert adjacent_scales(torch.tensor([[10.0], [900.0]]), 224.0).tolist() == [0, 0]
    for scales in (1, 3):
        found = adjacent_scales(torch.zeros(0, scales), 224.0)
        assert found.shape == (0,) and found.dtype == torch.int64


def test_adjacent_scales_against_loops():
    torch.manual_seed(0)
    sides = (torch.rand(50, 1) * 300) * torch.tensor([0.3, 0.6, 1.0, 1.3, 2.0])
    sides[::5] = sides[::5].round()
    for region_side in (20.0, 100.0, 224.0):
        expected = []
        for row in sides.tolist():
            costs = [abs(row[i] - region_side) + abs(row[i + 1] - region_side) for i in range(4)]
            expected.append(costs.index(min(costs)))
        assert len(set(expected)) > 1
        assert adjacent_scales(sides, region_side).tolist() == expected


class Level:
    """A view whose vectors say what it was asked."""

    def __init__(self, factors: list[tuple[float, float]]) -> None:
        self.factors = torch.tensor(factors).repeat(1, 2)  # (N, 4)
        self.rows = 0

    def scale_from(self, common: ImageBatch) -> torch.Tensor:
        return self.factors

    def embed(self, boxes, images, context, common) -> torch.Tensor:
        self.rows += len(boxes)
        width = boxes[:, 2] * self.factors[images, 0]
        return torch.cat([torch.stack([width, -width, 10.0 * images], dim=1), context[images]], dim=1)


COMMON = ImageBatch(torch.empty(0), [(100, 100)] * 3, [(100, 100)] * 3)


def test_maxout_by_hand():
    pyramid = [Level([(0.5, 0.5), (0.5, 0.5)]), Level([(1, 1), (1, 1)]), Level([(2, 2), (2, 2)])]
    regions = [torch.tensor([[0.0, 0, 20, 20], [0, 0, 80, 80]]), torch.tensor([[0.0, 0, 20, 80]])]
    context = torch.tensor([[7.0], [8.0]])
    vectors = embed_maxout(pyramid, *flatten(regions), context, COMMON, region_side=40)
    # Sides 10, 20, 40: the last two, widths 20 and 40. Sides 40, 80, 160: the first two, widths 40 and 80.
    # The third is 20 x 80, as 40 x 40: sides 20, 40, 80: 20 + 0 against 0 + 40, so the first two, widths 10 and 20.
    assert_close(vectors, torch.tensor([[40.0, -20, 0, 7], [80, -40, 0, 7], [20, -10, 10, 8]]))
    assert [level.rows for level in pyramid] == [2, 3, 1]


def test_each_image_has_factors_of_its_own():
    # Both regions are 40 x 40; the second image's views are half as large, and not by one factor on both axes.
    pyramid = [Level([(1, 1), (0.5, 0.125)]), Level([(2, 2), (1, 0.25)]), Level([(4, 4), (2, 0.5)])]
    regions = [torch.tensor([[0.0, 0, 40, 40]])] * 2
    vectors = embed_maxout(pyramid, *flatten(regions), torch.zeros(2, 0), COMMON, region_side=40)
    # Sides 40, 80, 160, and 10, 20, 40: widths 40 and 80 of the first, 40 and 80 of the second's last two.
    assert_close(vectors, torch.tensor([[80.0, -40, 0], [80, -40, 10]]))
    assert [level.rows for level in pyramid] == [1, 2, 1]


def test_one_level_and_no_regions():
    for pyramid in ([Level([(1, 1)])], [Level([(1, 1)]), Level([(2, 2)])]):
        vectors = embed_maxout(pyramid, *flatten([torch.zeros(0, 4)]), torch.zeros(1, 2), COMMON, region_side=40)
        assert vectors.shape == (0, 5)
    alone = embed_maxout(
        [Level([(1, 1)])], *flatten([torch.tensor([[0.0, 0, 9, 9]])]), torch.ones(1, 1), COMMON, region_side=40
    )
    assert_close(alone, torch.tensor([[9.0, -9, 0, 1]]))


def test_merge_proposals_by_hand():
    a, b = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]]), torch.tensor([[0.0, 0, 10, 8], [20, 20, 30, 30]])
    # The best of the second scale covers 0.8 of the best of the first, which goes.
    found = [(a, torch.tensor([1.0, -2])), (b, torch.tensor([3.0, 0]))]
    assert_close(merge_proposals(found, nms_iou=0.7, count=9), torch.stack([b[0], b[1], a[1]]))
    assert_close(merge_proposals(found, nms_iou=0.7, count=2), b)
    assert_close(merge_proposals(found, nms_iou=0.8, count=9), torch.stack([b[0], a[0], b[1], a[1]]))
    none = (torch.zeros(0, 4), torch.zeros(0))
    assert_close(merge_proposals([none, found[1]], nms_iou=0.7, count=9), b)
    assert merge_proposals([none, none], nms_iou=0.7, count=9).shape == (0, 4)


def test_merge_proposals_against_loops():
    torch.manual_seed(0)
    corners = torch.rand(3, 20, 2) * 40
    boxes, scores = torch.cat([corners, corners + 5 + torch.rand(3, 20, 2) * 30], dim=2), torch.rand(3, 20)
    kept: list[torch.Tensor] = []
    for _, box in sorted(zip(scores.flatten().tolist(), boxes.flatten(0, 1), strict=True), key=lambda pair: -pair[0]):
        if all(box_ops.iou(box[None], other[None]) <= 0.5 for other in kept):
            kept.append(box)
    assert 10 < len(kept) < 50
    found = list(zip(boxes, scores, strict=True))
    assert_close(merge_proposals(found, nms_iou=0.5, count=10), torch.stack(kept[:10]))
    assert_close(merge_proposals(found, nms_iou=0.5, count=60), torch.stack(kept))
