from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from resdet import boxes as box_ops
from resdet.errors import InputError
from resdet.localization.selection import best, join, propose_best
from resdet.structures import ClassBoxes


def of_class(label: int, *rows: tuple[float, list[float]]) -> ClassBoxes:
    boxes = torch.tensor([box for _, box in rows], dtype=torch.float32).view(1, -1, 4)
    return ClassBoxes(torch.tensor([label]), boxes, torch.tensor([[score for score, _ in rows]]))


def stacked(*parts: ClassBoxes) -> ClassBoxes:
    return ClassBoxes(*map(torch.cat, zip(*parts, strict=True)))


A, B, C = [0.0, 0, 10, 10], [0.0, 0, 10, 8], [50.0, 50, 60, 60]  # A and B overlap by 0.8


def test_best_by_hand():
    image = stacked(of_class(7, (0.2, A), (0.9, B), (0.1, C)), of_class(3, (0.4, A), (0.2, B), (0.5, C)))
    (answer,) = best([image])
    assert answer.labels.tolist() == [7, 3]
    assert_close(answer.boxes, torch.tensor([B, C]))
    assert_close(answer.scores, torch.tensor([0.9, 0.5]))


def test_vote_by_hand():
    image = stacked(of_class(7, (0.2, A), (0.6, B), (0.1, C)), of_class(3, (0.4, A), (0.2, B), (0.5, C)))
    other = of_class(1, (0.3, C))
    answers = best([image, stacked(other, other)], vote=0.5)
    # Of class 7, B has 0.6 and A 0.2: y2 = (0.6 x 8 + 0.2 x 10) / 0.8 = 8.5. Of class 3, C is alone.
    assert_close(answers[0].boxes, torch.tensor([[0, 0, 10, 8.5], C]))
    assert_close(answers[0].scores, torch.tensor([0.6, 0.5]))
    assert_close(answers[1].boxes, torch.tensor([C, C]))


def test_join():
    joined = join([of_class(7, (0.2, A)), of_class(7, (0.9, B), (0.1, C))])
    assert joined.labels.tolist() == [7]
    assert_close(joined.boxes, torch.tensor([[A, B, C]]))
    assert_close(joined.scores, torch.tensor([[0.2, 0.9, 0.1]]))


def test_proposals_by_hand():
    image = stacked(of_class(7, (0.2, A), (0.9, B), (0.1, C)), of_class(3, (0.4, A), (0.2, C), (0.3, B)))
    # NMS drops A of the first class and B of the second; they come last, to fill the number.
    found = propose_best(image, count=3, nms_iou=0.7)
    assert_close(found.boxes, torch.tensor([[B, C, A], [A, C, B]]))
    assert_close(found.scores, torch.tensor([[0.9, 0.1, 0.2], [0.4, 0.2, 0.3]]))
    assert_close(propose_best(image, count=2, nms_iou=0.7).boxes, torch.tensor([[B, C], [A, C]]))
    assert_close(propose_best(image, count=2, nms_iou=0.8).boxes, torch.tensor([[B, A], [A, B]]))  # not by more
    assert propose_best(image, count=9, nms_iou=0.7).boxes.shape == (2, 3, 4)


@pytest.mark.parametrize(("equal", "second"), [(9, C), (10, A)])
def test_only_the_best_enter_nms(equal, second):
    # Two are wanted, so ten enter. The tenth, apart, is the second; the eleventh is not seen.
    image = of_class(0, *((0.9 - 0.01 * i, A) for i in range(equal)), (0.05, C))
    assert_close(propose_best(image, count=2, nms_iou=0.5).boxes[0], torch.tensor([A, second]))


def test_proposals_do_not_overlap_before_the_rest():
    torch.manual_seed(0)
    corners = torch.rand(2, 60, 2) * 30
    image = ClassBoxes(
        torch.tensor([0, 1]), torch.cat([corners, corners + 5 + torch.rand(2, 60, 2) * 20], 2), torch.rand(2, 60)
    )
    found = propose_best(image, count=12, nms_iou=0.3)
    for boxes, scores in zip(found.boxes, found.scores, strict=True):
        overlap = box_ops.iou(boxes, boxes).triu(1)
        survivors = int((overlap > 0.3).any(0).int().argmax()) or len(boxes)
        assert survivors > 4 and (scores[:survivors].diff() <= 0).all() and (scores[survivors:].diff() <= 0).all()
        assert overlap[:survivors, :survivors].max() <= 0.3


def test_no_candidate():
    with pytest.raises(InputError, match="found:  no box"):
        best([ClassBoxes(torch.tensor([1]), torch.zeros(1, 0, 4), torch.zeros(1, 0))])
