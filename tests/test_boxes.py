from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close
from torchvision.ops import box_iou

from resdet import boxes as box_ops


def random_boxes(*shape: int, seed: int = 0, extent: float = 100.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(*shape, 2, generator=generator) * extent
    return torch.cat([corner, corner + 1 + torch.rand(*shape, 2, generator=generator) * extent / 2], dim=-1)


def test_area():
    boxes = torch.tensor([[1.0, 2, 4, 4], [5, 5, 5, 9], [3, 3, 2, 2], [0, 0, 0, 0]])
    assert_close(box_ops.area(boxes), torch.tensor([6.0, 0, 0, 0]))  # 3 x 2; an empty box, also inside out, has none


def test_iou_by_hand():
    first = torch.tensor([[0.0, 0, 2, 2], [0, 0, 0, 0]])
    second = torch.tensor([[1.0, 1, 3, 3], [0, 0, 4, 4], [2, 0, 3, 2], [0, 0, 0, 0]])
    # 1 / (4 + 4 - 1); 4 / 16; touching edges share nothing; no union is an IoU of 0 and not NaN
    assert_close(box_ops.iou(first, second), torch.tensor([[1 / 7, 1 / 4, 0, 0], [0, 0, 0, 0]]))


def test_iou_laws():
    a, b = random_boxes(3, 20), random_boxes(3, 30, seed=1)
    found = box_ops.iou(a, b)
    assert found.shape == (3, 20, 30) and found.min() >= 0 and found.max() <= 1
    assert_close(found, box_ops.iou(b, a).transpose(1, 2))
    assert_close(box_ops.iou(a, a).diagonal(dim1=1, dim2=2), torch.ones(3, 20))
    assert_close(found, torch.stack([box_iou(x, y) for x, y in zip(a, b, strict=True)]))
    assert_close(box_ops.iou(a[0], b), torch.stack([box_ops.iou(a[0], y) for y in b]))  # leading dimensions broadcast
    assert box_ops.iou(torch.zeros(0, 4), b[0]).shape == (0, 30)


def test_coverage():
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 0, 0]])
    regions = torch.tensor([[1.0, 0, 50, 50], [-9, -9, 99, 99], [0, 0, 0, 0]])
    # half of the first box is in the first region, however large that is
    assert_close(box_ops.coverage(boxes, regions), torch.tensor([[0.5, 1, 0], [0, 0, 0]]))


def test_clip():
    boxes = torch.tensor([[[-1.0, -2, 50, 60], [5, 6, 7, 8]], [[-1, -2, 50, 60], [30, 5, 40, 9]]])
    limits = torch.tensor([[40.0, 30, 40, 30], [20, 10, 20, 10]])[:, None]  # (W, H, W, H) of two images
    expected = torch.tensor([[[0.0, 0, 40, 30], [5, 6, 7, 8]], [[0, 0, 20, 10], [20, 5, 20, 9]]])
    clipped = box_ops.clip(boxes, limits)
    assert_close(clipped, expected)
    assert_close(box_ops.clip(clipped, limits), clipped)


def test_encode_by_hand():
    proposal, target = torch.tensor([[0.0, 0, 10, 20]]), torch.tensor([[5.0, 10, 25, 30]])
    # centres (5, 10) and (15, 20), sizes (10, 20) and (20, 20): dx = 10/10, dy = 10/20, dw = log 2, dh = log 1
    deltas = torch.tensor([[1, 0.5, math.log(2), 0]])
    assert_close(box_ops.encode(proposal, target), deltas)
    assert_close(box_ops.encode(proposal, target, box_ops.HEAD), deltas * torch.tensor([10.0, 10, 5, 5]))
    assert_close(box_ops.decode(deltas, proposal), target)


@pytest.mark.parametrize("weights", [box_ops.UNIT, box_ops.HEAD])
def test_decode_inverts_encode(weights):
    proposals, targets = random_boxes(2, 50), random_boxes(2, 50, seed=1)
    found = box_ops.decode(box_ops.encode(proposals, targets, weights), proposals, weights)
    assert_close(found, targets, rtol=0, atol=1e-3)
    zero = torch.zeros(2, 50, 3, 4)  # no deltas, no motion; a proposal serves each of its three classes
    assert_close(box_ops.decode(zero, proposals[:, :, None], weights), proposals[:, :, None].expand(2, 50, 3, 4))


def test_decode_is_bounded_and_float32():
    proposal = torch.tensor([[0.0, 0, 16, 32]])
    found = box_ops.decode(torch.tensor([[0, 0, 1000, 1000]], dtype=torch.float16), proposal)
    assert_close(found, torch.tensor([[8.0 - 500, 16 - 1000, 8 + 500, 16 + 1000]]))  # 62.5-fold at most


def test_encode_of_empty_boxes_is_finite():
    empty, far = torch.zeros(1, 4), torch.tensor([[900.0, 900, 1000, 1000]])
    for a, b in ((empty, far), (far, empty), (empty, empty)):
        assert box_ops.encode(a, b, box_ops.HEAD).isfinite().all()


def test_nms_by_hand():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 5], [0, 0, 10, 10]])
    scores = torch.tensor([0.6, 0.9, 0.8, 0.7])
    one_group, two_groups = torch.zeros(4, dtype=torch.long), torch.tensor([0, 0, 0, 1])
    # Box 1 leads; IoU with 0 and 3 is 0.8, with 2 it is 0.625. The twin of box 0 lives on in a group of its own.
    assert box_ops.batched_nms(boxes, scores, one_group, 0.7).tolist() == [1, 2]
    assert box_ops.batched_nms(boxes, scores, one_group, 0.6).tolist() == [1]
    assert box_ops.batched_nms(boxes, scores, two_groups, 0.7).tolist() == [1, 2, 3]
    assert box_ops.batched_nms(boxes[:0], scores[:0], one_group[:0], 0.7).tolist() == []


def test_nms_does_not_depend_on_the_order():
    boxes, generator = random_boxes(200, extent=40), torch.Generator().manual_seed(3)
    scores, groups = torch.rand(200, generator=generator), torch.randint(3, (200,), generator=generator)
    kept = box_ops.batched_nms(boxes, scores, groups, 0.4)
    assert 10 < len(kept) < 190 and (scores[kept].diff() <= 0).all()
    order = torch.randperm(200, generator=generator)
    again = box_ops.batched_nms(boxes[order], scores[order], groups[order], 0.4)
    assert_close(order[again], kept)


def test_nms_is_as_exact_in_the_last_group_as_in_the_first():
    # IoU 1.99 / 4.01 = 0.496. Group 1279 of boxes up to 1330 is moved by 1.7 million px, where float32 has steps of
    # 1/8 px: 1.01 would become 1, and the IoU 2 / 4.
    boxes = torch.tensor([[0.0, 0, 3, 1], [1.01, 0, 4.01, 1], [1320, 0, 1330, 10]])
    scores = torch.tensor([0.9, 0.8, 0.7])
    for group in (0, 1279):  # the last of 16 images with 80 classes
        assert box_ops.batched_nms(boxes, scores, torch.full((3,), group), 0.498).tolist() == [0, 1, 2]


def test_scale():
    boxes = torch.tensor([[10.0, 10, 20, 20]])
    assert_close(box_ops.scale(boxes, (100, 200), (50, 600)), torch.tensor([[30.0, 5, 60, 10]]))  # x by 3, y by 1/2
    there = box_ops.scale(random_boxes(30), (333, 500), (600, 901))
    assert_close(box_ops.scale(there, (600, 901), (333, 500)), random_boxes(30))
