from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from resdet import boxes as box_ops
from resdet.detection.postprocess import score_regions, suppress, to_original
from resdet.detection.roi_head import Predictions
from resdet.errors import InputError
from resdet.structures import Detections, Proposals, ScoredBoxes


def test_score_regions_by_hand():
    boxes = torch.tensor([[[0.0, 0, 10, 10], [5, 5, 15, 15]], [[2, 2, 8, 8], [0, 0, 0, 0]]])
    proposals = Proposals(boxes, torch.zeros(2, 2), torch.tensor([[True, True], [True, False]]))
    logits = torch.tensor([[1.0, 0, 0, 0], [0, 9, 0, 0], [0, 0, 0, 0], [5, 5, 5, 5]])
    deltas = torch.zeros(4, 3, 4)
    deltas[0, 1, 0] = 5.0  # the second class of the first region: 5 / 10 of its width to the right
    limits = torch.tensor([[12.0, 20, 12, 20], [100, 100, 100, 100]])
    first, second = score_regions(Predictions(logits, deltas), proposals, limits)
    assert_close(first.boxes[0], torch.tensor([[0.0, 0, 10, 10], [5, 0, 12, 10], [0, 0, 10, 10]]))
    assert_close(first.boxes[1], torch.tensor([[5.0, 5, 12, 15]] * 3))
    assert_close(second.boxes, torch.tensor([[[2.0, 2, 8, 8]] * 3]))  # without the place that holds no region
    assert_close(second.probabilities, torch.full((1, 3), 0.25))  # background dropped after the softmax
    assert_close(first.probabilities, logits[:2].softmax(1)[:, :3])


def test_score_regions_class_agnostic():
    proposals = Proposals(torch.rand(2, 5, 4), torch.zeros(2, 5), torch.ones(2, 5, dtype=torch.bool))
    for scored in score_regions(Predictions(torch.zeros(10, 4), torch.zeros(10, 1, 4)), proposals, torch.ones(2, 4)):
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


def test_suppress_softly_by_hand():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8], [20, 0, 30, 10]])
    scored = ScoredBoxes(boxes[:, None].expand(3, 2, 4), torch.tensor([[0.8, 0.04], [0.7, 0.3], [0.06, 0.9]]))
    (found,) = suppress([scored], method="linear")
    # As in hard NMS, but region 1 of class 0 stays with 0.7 x (1 - 0.8) = 0.14. The 0.3 of class 1 has no rival.
    assert_close(found.scores, torch.tensor([0.9, 0.8, 0.3, 0.14, 0.06]))
    assert found.labels.tolist() == [1, 0, 1, 0, 0]
    assert_close(found.boxes, boxes[[2, 0, 1, 1, 2]])
    (found,) = suppress([scored], method="gaussian", sigma=0.32)
    assert_close(found.scores, torch.tensor([0.9, 0.8, 0.3, 0.0947347, 0.06]))  # 0.7 exp(-0.64 / 0.32)
    assert_close(suppress([scored], method="linear", nms_iou=0.85)[0].scores, torch.tensor([0.9, 0.8, 0.7, 0.3, 0.06]))
    low = suppress([scored], method="linear", score_threshold=0.2)  # above it before the decay, not after
    assert_close(low[0].scores, torch.tensor([0.9, 0.8, 0.3]))
    assert_close(suppress([scored], method="linear", max_per_image=2)[0].scores, torch.tensor([0.9, 0.8]))


def test_suppress_across_classes_by_hand():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8], [20, 0, 30, 10]])
    scored = ScoredBoxes(boxes[:, None], torch.tensor([[0.8, 0.04], [0.1, 0.3], [0.06, 0.9]]))
    (found,) = suppress([scored], class_agnostic=True)
    # 0.9 takes the 0.06 of its own region; 0.8 takes 0.3 and 0.1, whose IoU with it is 0.8.
    assert_close(found.scores, torch.tensor([0.9, 0.8]))
    assert found.labels.tolist() == [1, 0]
    first, second = suppress([scored, scored], class_agnostic=True)  # images do not meet
    assert_close((tuple(first), tuple(second)), (tuple(found), tuple(found)))
    (found,) = suppress([scored], class_agnostic=True, method="linear")
    assert_close(found.scores, torch.tensor([0.9, 0.8, 0.06]))  # 0.3 x 0.2 = 0.06; all others end at 0.02 or 0
    assert found.labels.tolist() == [1, 0, 1]


def random_batch(columns: int) -> list[ScoredBoxes]:
    """Four images: many regions with ties, none, all of one class, and a single one."""
    generator = torch.Generator().manual_seed(2)
    batch = []
    for count in (40, 0, 12, 1):
        corner = torch.rand(count, columns, 2, generator=generator) * 30
        boxes = torch.cat([corner, corner + 5 + torch.rand(count, columns, 2, generator=generator) * 20], dim=-1)
        batch.append(ScoredBoxes(boxes, torch.randn(count, 5, generator=generator).mul(2).softmax(1)[:, :4]))
    batch[0].probabilities[20:] = batch[0].probabilities[:20]
    batch[2].probabilities[:, [0, 1, 3]] = 0
    batch[3].probabilities[:] = torch.tensor([0.6, 0.2, 0.2, 0.0])
    return batch


def slow_soft_suppress(scored: ScoredBoxes, *, method: str, class_agnostic: bool, most: int):
    """One image, one box at a time; threshold 0.1, NMS 0.3, sigma 0.5."""
    rows, classes = scored.probabilities.shape
    answer = []
    for group in [range(classes)] if class_agnostic else [[label] for label in range(classes)]:
        left = {(r, k): p for r in range(rows) for k in group if (p := scored.probabilities[r, k].item()) > 0.1}
        while left and max(left.values()) > 0.1:
            best = max(left, key=left.get)  # the first of equals
            box = scored.boxes[best[0], best[1] % scored.boxes.shape[1]]
            answer.append((left.pop(best), best, box))
            for r, k in left:
                overlap = box_ops.iou(box[None], scored.boxes[r, k % scored.boxes.shape[1]][None]).item()
                if method == "gaussian":
                    left[r, k] *= math.exp(-(overlap**2) / 0.5)
                elif overlap > 0.3:
                    left[r, k] *= 1 - overlap
    return sorted(answer, key=lambda item: (-item[0], item[1]))[:most]


@pytest.mark.parametrize("columns", [4, 1], ids=["per-class", "one-box"])
@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_suppress_softly_equals_the_slow_way(method, class_agnostic, columns):
    batch, decayed = random_batch(columns), 0
    for most in (100, 7):
        found = suppress(
            batch,
            score_threshold=0.1,
            nms_iou=0.3,
            max_per_image=most,
            method=method,
            class_agnostic=class_agnostic,
        )
        for scored, answer in zip(batch, found, strict=True):
            expected = slow_soft_suppress(scored, method=method, class_agnostic=class_agnostic, most=most)
            assert answer.labels.tolist() == [label for _, (_, label), _ in expected]
            assert_close(answer.scores, torch.tensor([score for score, _, _ in expected]))
            boxes = torch.stack([box for _, _, box in expected]) if expected else torch.zeros(0, 4)
            assert_close(answer.boxes, boxes, rtol=0, atol=0)
            decayed += sum(score < scored.probabilities[at].item() - 1e-6 for score, at, _ in expected)
    assert decayed > 10


@pytest.mark.parametrize("columns", [4, 1], ids=["per-class", "one-box"])
def test_class_agnostic_is_one_class_over_all_pairs(columns):
    batch = random_batch(columns)
    batch[0].probabilities.add_(torch.rand(40, 4, generator=torch.Generator().manual_seed(3)) * 1e-3)  # no ties here
    for scored, answer in zip(
        batch, suppress(batch, score_threshold=0.1, nms_iou=0.3, class_agnostic=True), strict=True
    ):
        pairs = scored.boxes.expand(-1, 4, 4).reshape(-1, 1, 4)
        (expected,) = suppress(
            [ScoredBoxes(pairs, scored.probabilities.reshape(-1, 1))], score_threshold=0.1, nms_iou=0.3
        )
        assert_close((answer.boxes, answer.scores), (expected.boxes, expected.scores))
        for box, score, label in zip(*answer, strict=True):
            row = (scored.probabilities[:, label] == score).nonzero()[0, 0]
            assert_close(scored.boxes[row, 0 if columns == 1 else label], box)


def test_nothing_found():
    empty = ScoredBoxes(torch.zeros(0, 3, 4), torch.zeros(0, 3))
    low = ScoredBoxes(torch.rand(2, 3, 4), torch.full((2, 3), 0.01))
    for found in suppress([empty, low]):
        assert [tuple(part.shape) for part in found] == [(0, 4), (0,), (0,)]
        assert found.labels.dtype == torch.int64


@pytest.mark.parametrize("method", ["hard", "linear", "gaussian"])
@pytest.mark.parametrize("class_agnostic", [False, True])
def test_nothing_found_by_any_method(method, class_agnostic):
    empty = ScoredBoxes(torch.zeros(0, 3, 4), torch.zeros(0, 3))
    for found in suppress([empty, empty], method=method, class_agnostic=class_agnostic):
        assert [tuple(part.shape) for part in found] == [(0, 4), (0,), (0,)]
        assert found.labels.dtype == torch.int64


def test_suppress_refuses():
    scored = ScoredBoxes(torch.zeros(1, 1, 4), torch.ones(1, 1))
    with pytest.raises(InputError, match=r"(?s)suppress: method.*'gausian'.*did you mean 'gaussian'"):
        suppress([scored], method="gausian")
    with pytest.raises(InputError, match=r"(?s)suppress: sigma.*found:  0.*above 0"):
        suppress([scored], method="gaussian", sigma=0)


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
