from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from resdet.detection.losses import box_loss, class_loss, objectness_loss


def test_objectness_by_hand():
    logits = torch.tensor([[0.0, 0.0, 50.0]], requires_grad=True)
    positive, used = torch.tensor([[True, False, False]]), torch.tensor([[True, True, False]])
    loss = objectness_loss(logits, positive, used)
    assert_close(loss, torch.tensor(math.log(2)))  # both in doubt; the third, quite wrong, is not asked
    loss.backward()
    assert_close(logits.grad, torch.tensor([[-0.25, 0.25, 0.0]]))


def test_class_by_hand():
    logits = torch.tensor([[0.0, 0, 0], [math.log(2), 0, 0], [9, 0, 0]], requires_grad=True)
    loss = class_loss(logits, torch.tensor([2, 0, 1]), torch.tensor([True, True, False]))
    assert_close(loss, torch.tensor((math.log(3) + math.log(2)) / 2))  # of the second: log(2 + 1 + 1) - log 2
    loss.backward()
    assert (logits.grad[2] == 0).all() and (logits.grad[:2] != 0).all()


@pytest.mark.parametrize(
    ("beta", "expected"),
    [
        (1.0, (0.5 * 0.25 + 2 - 0.5) / 4),  # 0.5 is in the square part, 2 in the linear one
        (0.0, (0.5 + 2) / 4),
        (1 / 9, (0.5 + 2 - 1 / 9) / 4),
    ],
)
def test_box_by_hand(beta, expected):
    targets = torch.zeros(5, 4)
    deltas = torch.tensor([[0.5, 0, 0, 2], [7, 7, 7, 7], [0, 0, 0, 0], [0, 0, 0, 0], [7, 7, 7, 7]], requires_grad=True)
    positive, used = torch.tensor([1, 0, 0, 0, 0]).bool(), torch.tensor([1, 1, 1, 1, 0]).bool()
    loss = box_loss(deltas, targets, positive, used, beta=beta)
    assert_close(loss, torch.tensor(expected))  # of one positive, over four used
    loss.backward()
    assert (deltas.grad[1:] == 0).all()


def test_nothing_used_is_zero_and_has_a_gradient():
    none = torch.zeros(2, 3, dtype=torch.bool)
    logits, deltas = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, 4, requires_grad=True)
    classes = torch.randn(6, 5, requires_grad=True)
    losses = [
        objectness_loss(logits, none, none),
        box_loss(deltas, torch.randn(2, 3, 4), none, none),
        class_loss(classes, torch.zeros(6, dtype=torch.long), none.flatten()),
    ]
    assert_close(torch.stack(losses), torch.zeros(3))
    sum(losses).backward()
    assert all((t.grad == 0).all() for t in (logits, deltas, classes))


def test_half_precision_is_summed_in_float32():
    used = torch.ones(1, 100_000, dtype=torch.bool)
    loss = objectness_loss(torch.zeros(1, 100_000, dtype=torch.bfloat16), ~used, used)
    assert loss.dtype == torch.float32
    assert_close(loss, torch.tensor(math.log(2)))
