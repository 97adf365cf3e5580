from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from resdet import boxes as box_ops
from resdet.detection.postprocess import suppress
from resdet.errors import InputError
from resdet.inference.voting import vote
from resdet.structures import Detections, ScoredBoxes


def detections(boxes, labels) -> Detections:
    boxes = torch.tensor(boxes).reshape(-1, 4)
    return Detections(boxes, torch.linspace(0.9, 0.1, len(boxes)), torch.tensor(labels, dtype=torch.long))


def test_vote_by_hand():
    # Class 0: IoU with the detection 1, 0.8 and exactly 0.5; the fourth, 0.4, does not vote. Class 1 is elsewhere.
    rows = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 5], [0, 0, 10, 4]])
    elsewhere = torch.tensor([[50.0, 0, 60, 10]] * 4)
    probabilities = torch.tensor([[0.6, 0.1], [0.3, 0.2], [0.1, 0.3], [0.8, 0.4]])
    scored = ScoredBoxes(torch.stack([rows, elsewhere], dim=1), probabilities)
    found = detections([[0.0, 0, 10, 10], [50, 0, 60, 10]], [0, 1])
    (voted,) = vote([found], [scored])
    # Bottom: (0.6 x 10 + 0.3 x 8 + 0.1 x 5) / 1.0 = 8.9. The second detection has four voters, all alike.
    assert_close(voted.boxes, torch.tensor([[0.0, 0, 10, 8.9], [50, 0, 60, 10]]))
    assert_close((voted.scores, voted.labels), (found.scores, found.labels))
    # At an IoU of 0.6: (6 + 2.4) / 0.9 = 9.33333.
    assert_close(vote([found], [scored], iou=0.6)[0].boxes[0], torch.tensor([0.0, 0, 10, 9.333333]))
    assert_close(vote([found], [scored], iou=1)[0].boxes, found.boxes)  # itself alone


def test_one_box_for_all_classes_by_hand():
    boxes = torch.tensor([[[0.0, 0, 10, 10]], [[0, 0, 10, 8]]])
    scored = ScoredBoxes(boxes, torch.tensor([[0.3, 0.1], [0.1, 0.3]]))
    (voted,) = vote([detections([[0.0, 0, 10, 10], [0, 0, 10, 8]], [0, 1])], [scored])
    # Class 0: (0.3 x 10 + 0.1 x 8) / 0.4 = 9.5; class 1: (0.1 x 10 + 0.3 x 8) / 0.4 = 8.5.
    assert_close(voted.boxes, torch.tensor([[0.0, 0, 10, 9.5], [0, 0, 10, 8.5]]))


def test_without_voters_a_box_stays():
    stray = detections([[100.0, 100, 120, 130]], [1])
    none, far = ScoredBoxes(torch.zeros(0, 2, 4), torch.zeros(0, 2)), ScoredBoxes(torch.ones(3, 2, 4), torch.ones(3, 2))
    for voted in vote([stray, stray], [none, far]):
        assert_close(voted.boxes, stray.boxes, rtol=0, atol=0)


def test_alone_a_box_keeps_every_bit():
    corner = torch.rand(50, 1, 2, generator=torch.Generator().manual_seed(0)) * 3000
    scored = ScoredBoxes(torch.cat([corner, corner + 1.7], dim=-1), torch.full((50, 1), 1e-3))
    (found,) = suppress([scored], score_threshold=0, nms_iou=1)
    assert_close(vote([found], [scored], iou=0.999)[0].boxes, found.boxes, rtol=0, atol=0)


def slow_vote(found: Detections, scored: ScoredBoxes, iou: float):
    """One detection and one voter at a time, in double precision."""
    voted = []
    for box, label in zip(found.boxes, found.labels.tolist(), strict=True):
        total, place = 0.0, torch.zeros(4, dtype=torch.float64)
        for r in range(len(scored.boxes)):
            voter = scored.boxes[r, 0 if scored.boxes.shape[1] == 1 else label]
            if box_ops.iou(box[None], voter[None]) >= iou:
                total += scored.probabilities[r, label].item()
                place += scored.probabilities[r, label].item() * voter.double()
        voted.append((place / total).float() if total else box)
    return torch.stack(voted) if voted else torch.zeros(0, 4)


@pytest.mark.parametrize("columns", [4, 1], ids=["per-class", "one-box"])
@pytest.mark.parametrize("iou", [0.5, 0.3])
def test_vote_equals_the_slow_way(columns, iou):
    generator = torch.Generator().manual_seed(1)
    batch = []
    for count in (40, 0, 12, 1, 12):
        corner = 2000 + torch.rand(count, columns, 2, generator=generator) * 20
        boxes = torch.cat([corner, corner + 15 + torch.rand(count, columns, 2, generator=generator) * 15], dim=-1)
        batch.append(ScoredBoxes(boxes, torch.randn(count, 5, generator=generator).mul(2).softmax(1)[:, :4]))
    batch[0].probabilities[20:] = batch[0].probabilities[:20]  # ties
    batch[3].probabilities[:] = 0.25
    batch[4].probabilities[:, 1:] = 0  # all of one class
    found = suppress(batch, score_threshold=0.1, nms_iou=0.3)
    moved = 0
    for scored, before, after in zip(batch, found, vote(found, batch, iou=iou), strict=True):
        assert_close(after.boxes, slow_vote(before, scored, iou), rtol=0, atol=5e-4)  # float32 near 2000: 1.2e-4
        assert_close((after.scores, after.labels), (before.scores, before.labels), rtol=0, atol=0)
        moved += int(((after.boxes - before.boxes).abs().amax(1) > 0.01).sum()) if len(after.boxes) else 0
    assert moved > 20 and len(found[3].boxes) > 0


def test_nothing_detected():
    scored = ScoredBoxes(torch.rand(5, 3, 4), torch.rand(5, 3))
    for voted in vote([detections([], [])] * 2, [scored] * 2):
        assert [tuple(part.shape) for part in voted] == [(0, 4), (0,), (0,)]


@pytest.mark.parametrize("iou", [0, -0.1, 1.01, float("nan")])
def test_vote_refuses_an_iou(iou):
    with pytest.raises(InputError, match=rf"(?s)vote: iou.*found:  {iou}.*\(0, 1\]"):
        vote([], [], iou=iou)


def test_vote_refuses_other_images():
    scored = ScoredBoxes(torch.rand(5, 3, 4), torch.rand(5, 3))
    with pytest.raises(InputError, match=r"(?s)vote: images.*1 of detections, 2 of scored boxes.*the same"):
        vote([detections([], [])], [scored, scored])
