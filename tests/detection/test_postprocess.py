from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from resdet import boxes as box_ops
from resdet.detection.postprocess import score_regions, suppress, to_original
from resdet.structures import Detections, Proposals, ScoredBoxes


def test_score_regions_by_hand():
    boxes = torch.tensor([[[0.0, 0, 10, 10], [5, 5, 15, 15]], [[2, 2, 8, 8], [0, 0, 0, 0]]])
    proposals = Proposals(boxes, torch.zeros(2, 2), torch.tensor([[True, True], [True, False]]))
    logits = torch.tensor([[1.0, 0, 0, 0], [0, 9, 0, 0], [0, 0, 0, 0], [5, 5, 5, 5]])
    deltas = torch.zeros(4, 3, 4)
    deltas[0, 1, 0] = 5.0  # the second class of the first region: 5 / 10 of its width to the right
    limits = torch.tensor([[12.0, 20, 12, 20], [100, 100, 100, 100]])
    first, second = score_regions(logits, deltas, proposals, limits)
    assert_close(first.boxes[0], torch.tensor([[0.0, 0, 10, 10], [5, 0, 12, 10], [0, 0, 10, 10]]))
    assert_close(first.boxes[1], torch.tensor([[5.0, 5, 12, 15]] * 3))
    assert_close(second.boxes, torch.tensor([[[2.0, 2, 8, 8]] * 3]))  # without the place that holds no region
    assert_close(second.probabilities, torch.full((1, 3), 0.25))  # background dropped after the softmax
    assert_close(first.probabilities, logits[:2].softmax(1)[:, :3])


def test_score_regions_class_agnostic():
    proposals = Proposals(torch.rand(2, 5, 4), torch.zeros(2, 5), torch.ones(2, 5, dtype=torch.bool))
    for scored in score_regions(torch.zeros(10, 4), torch.zeros(10, 1, 4), proposals, torch.ones(2, 4)):
        assert scored.boxes.shape == (5, 1, 4) and scored.probabilities.shape == (5, 3)


def test_suppress_by_hand():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8], [20, 0, 30, 10]])
    scored = ScoredBoxes(
        boxes[:, None].expand(3, 2, 4), torch.tensor([[0.8, 0.04], [0.7, 0.3], [0.06, 0.9]])
    )  # region x class
    (found,) = suppress([scored])
    # Class 1 of region 2; class 0 of region 0, which takes region 1 (IoU 0.8); class 1 of region 1, another class;
    # class 0 of region 2. 0.04 is below the threshold.
    assert_close(found.scores, torch.tensor([0.9, 0.8, 0.3, 0.06]))
    assert found.labels.tolist() == [1, 0, 1, 0]
    assert_close(found.boxes, boxes[[2, 0, 1, 2]])
    assert_close(suppress([scored], score_threshold=0.3)[0].scores, torch.tensor([0.9, 0.8]))  # above, not at
    assert_close(suppress([scored], nms_iou=0.85)[0].scores, torch.tensor([0.9, 0.8, 0.7, 0.3, 0.06]))
    assert_close(suppress([scored], max_per_image=2)[0].scores, torch.tensor([0.9, 0.8]))


def test_boxes_without_a_side_are_dropped():
    boxes = torch.tensor([[[0.0, 0, 10, 0.001]], [[0.0, 0, 10, 0.1]]])
    (found,) = suppress([ScoredBoxes(boxes, torch.tensor([[0.9], [0.8]]))])
    assert_close(found.scores, torch.tensor([0.8]))


def slow_suppress(scored: ScoredBoxes, threshold: float, nms_iou: float, most: int):
    """One image, one class and one box at a time."""
    found = []
    for label in range(scored.probabilities.shape[1]):
        column = 0 if scored.boxes.shape[1] == 1 else label
        rows = [r for r in range(len(scored.boxes)) if scored.probabilities[r, label] > threshold]
        kept = []
        for r in sorted(rows, key=lambda r: -scored.probabilities[r, label]):
            box = scored.boxes[r, column]
            if all(box_ops.iou(box[None], scored.boxes[k, column][None]) <= nms_iou for k in kept):
                kept.append(r)
                found.append((scored.probabilities[r, label].item(), label, scored.boxes[r, column].tolist()))
    return sorted(found, reverse=True)[:most]


@pytest.mark.parametrize("columns", [4, 1], ids=["per-class", "class-agnostic"])
def test_suppress_equals_the_slow_way(columns):
    generator = torch.Generator().manual_seed(0)
    batch = []
    for count in (30, 0, 12, 1):  # regions of four images
        corner = torch.rand(count, columns, 2, generator=generator) * 30
        boxes = torch.cat([corner, corner + 5 + torch.rand(count, columns, 2, generator=generator) * 20], dim=-1)
        batch.append(ScoredBoxes(boxes, torch.randn(count, 5, generator=generator).mul(2).softmax(1)[:, :4]))
    dropped = 0
    for most in (100, 7):
        found = suppress(batch, score_threshold=0.1, nms_iou=0.3, max_per_image=most)
        for scored, answer in zip(batch, found, strict=True):
            expected = slow_suppress(scored, 0.1, 0.3, most)
            assert answer.labels.tolist() == [label for _, label, _ in expected]
            assert_close(answer.scores, torch.tensor([score for score, _, _ in expected]))
            assert_close(answer.boxes, torch.tensor([box for _, _, box in expected]).reshape(-1, 4))
            dropped += int((scored.probabilities > 0.1).sum()) - len(expected)
            (alone,) = suppress([scored], score_threshold=0.1, nms_iou=0.3, max_per_image=most)
            assert_close(tuple(alone), tuple(answer))
    assert dropped > 20


def test_nothing_found():
    empty = ScoredBoxes(torch.zeros(0, 3, 4), torch.zeros(0, 3))
    low = ScoredBoxes(torch.rand(2, 3, 4), torch.full((2, 3), 0.01))
    for found in suppress([empty, low]):
        assert [tuple(part.shape) for part in found] == [(0, 4), (0,), (0,)]
        assert found.labels.dtype == torch.int64


def test_to_original():
    found = Detections(torch.tensor([[30.0, 20, 60, 40]]), torch.tensor([0.5]), torch.tensor([1]))
    moved = to_original(found, (100, 300), (50, 100))
    assert_close(moved.boxes, torch.tensor([[10.0, 10, 20, 20]]))  # x by 1/3, y by 1/2
    assert_close((moved.scores, moved.labels), (found.scores, found.labels))


def test_to_original_stays_inside():
    whole = Detections(torch.tensor([[0.0, 0, 800, 1066]]), torch.ones(1), torch.zeros(1, dtype=torch.long))
    for height in range(200, 400):  # float32 ratios are rounded, some of them up
        (box,) = to_original(whole, (1066, 800), (height, height + 50)).boxes
        assert box[2] <= height + 50 and box[3] <= height
        assert_close(box, torch.tensor([0.0, 0, height + 50, height]))
