from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from resdet import boxes as box_ops
from resdet.detection.anchors import Anchors
from resdet.detection.matching import pad_targets
from resdet.localization.per_class_rpn import PerClassRPN
from resdet.structures import Target


def target(label: int, *boxes, ignore=False) -> Target:
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Target(boxes, torch.full((len(boxes),), label), torch.full((len(boxes),), ignore), 0, (64, 64))


def small_rpn(num_classes: int = 5, *, channels: int = 3, sizes=(16, 32), ratios=(1.0, 2.0), **settings) -> PerClassRPN:
    torch.manual_seed(0)
    rpn = PerClassRPN(channels, num_classes, Anchors([sizes], [16], ratios=ratios), **settings)
    for parameter in rpn.parameters():
        nn.init.normal_(parameter)
    return rpn


def square_rpn(num_classes: int, **settings) -> PerClassRPN:
    """One square anchor of side 16 per cell and a map of one channel; all weights zero."""
    rpn = PerClassRPN(1, num_classes, Anchors([(16,)], [16], ratios=(1.0,)), **settings)
    for parameter in rpn.parameters():
        nn.init.zeros_(parameter)
    return rpn


def test_outputs_by_hand():
    rpn = square_rpn(2)
    with torch.no_grad():
        rpn.objectness.weight.copy_(torch.tensor([1.0, 10]).view(2, 1, 1, 1))
        rpn.objectness.bias.copy_(torch.tensor([0.5, 0]))
        rpn.deltas.weight.copy_(torch.tensor([1.0, 2, 3, 4, 10, 20, 30, 40]).view(8, 1, 1, 1))
        logits, deltas = rpn(torch.tensor([[2.0, 3]])[None, None], torch.tensor([[1, 0]]))
    # Cells 2 and 3. Class 1: 20, 30; class 0: 2.5, 3.5.
    assert_close(logits, torch.tensor([[[20.0, 30], [2.5, 3.5]]]))
    assert_close(deltas[0, 0, 1], torch.tensor([30.0, 60, 90, 120]))
    assert_close(deltas[0, 1, 0], torch.tensor([2.0, 4, 6, 8]))


def test_outputs_are_those_of_the_whole_convolutions():
    rpn = small_rpn()
    feature, classes = torch.randn(2, 3, 4, 5), torch.tensor([[4, 0], [2, 2]])
    logits, deltas = rpn(feature, classes)
    assert logits.shape == (2, 2, 4 * 5 * 4) and deltas.shape == (2, 2, 4 * 5 * 4, 4)
    every = rpn.objectness(feature).view(2, 5, 4, 4, 5)  # N, K, A, H, W
    moves = rpn.deltas(feature).view(2, 5, 4, 4, 4, 5)  # N, K, A, 4, H, W
    for n in range(2):
        for c, k in enumerate(classes[n].tolist()):
            assert_close(logits[n, c], every[n, k].permute(1, 2, 0).flatten())
            assert_close(deltas[n, c], moves[n, k].permute(2, 3, 0, 1).reshape(-1, 4))


def test_channels_last_maps_answer_the_same():
    rpn, feature, classes = small_rpn(), torch.randn(2, 3, 4, 5), torch.tensor([[1], [3]])
    for a, b in zip(rpn(feature, classes), rpn(feature.contiguous(memory_format=torch.channels_last), classes)):  # noqa: B905
        assert_close(a, b)


def test_initial_weights():
    rpn = PerClassRPN(64, 10, Anchors([(16,)], [16]))
    for layer in (rpn.objectness, rpn.deltas):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.1) and (layer.bias == 0).all()
    assert set(rpn.state_dict()) == {"objectness.weight", "objectness.bias", "deltas.weight", "deltas.bias"}


def test_loss_by_hand():
    # Anchors [-8, -8, 8, 8], [8, -8, 24, 8], [24, -8, 40, 8]. The object is the second, 2 px to the right: IoU 14 / 18.
    rpn = square_rpn(3, beta=0.0)
    with torch.no_grad():
        rpn.objectness.bias.copy_(torch.tensor([7.0, math.log(3), -7]))  # only class 1 may count
        rpn.deltas.bias[:4] = 9
    losses = rpn.loss(torch.zeros(1, 1, 1, 3), pad_targets([target(1, [10, -8, 26, 8])]))
    # -log sigmoid(log 3) = log 4/3; log 4 for each background. The delta wanted is (2/16, 0, 0, 0), told was 0.
    assert_close(losses["loss_rpn_objectness"], torch.tensor((math.log(4 / 3) + 2 * math.log(4)) / 3))
    assert_close(losses["loss_rpn_box"], torch.tensor(0.125 / 3))
    assert set(losses) == {"loss_rpn_objectness", "loss_rpn_box"}


def test_loss_is_that_of_a_loop():
    rpn = small_rpn(
        batch_size_per_image=1000, positive_fraction=1.0, positive_iou=0.35, background_iou=(0.0, 0.32), beta=0.1
    )
    feature = torch.randn(3, 3, 6, 6)
    objects = [(4, (8.0, 10, 40, 38)), (0, (30.0, 30, 60, 90)), (2, (0.0, 0, 20, 18))]
    losses = rpn.loss(feature, pad_targets([target(k, list(box)) for k, box in objects]))
    anchors = rpn.anchors([feature])[0]
    every, moves = rpn.objectness(feature).view(3, 5, 4, 6, 6), rpn.deltas(feature).view(3, 5, 4, 4, 6, 6)
    total = box_total = used = 0
    for n, (k, box) in enumerate(objects):
        overlap = box_ops.iou(anchors, torch.tensor([box]))[:, 0]
        for m, anchor in enumerate(anchors):
            cell, a = divmod(m, 4)
            row, column = divmod(cell, 6)
            logit = every[n, k, a, row, column]
            if overlap[m] >= 0.35 or overlap[m] == overlap.max():
                total = total - torch.sigmoid(logit).log()
                wanted = box_ops.encode(anchor, torch.tensor(box))
                off = (moves[n, k, a, :, row, column] - wanted).abs()
                box_total = box_total + torch.where(off < 0.1, off**2 / 0.2, off - 0.05).sum()
            elif overlap[m] < 0.32:
                total = total - torch.sigmoid(-logit).log()
            else:
                continue
            used += 1
    assert used > 100
    assert_close(losses["loss_rpn_objectness"], total / used)
    assert_close(losses["loss_rpn_box"], box_total / used)


def test_absent_classes_learn_nothing():
    rpn = small_rpn()
    truth = pad_targets([target(3, [8, 8, 40, 40]), target(1, [8, 8, 24, 24]), target(3, [0, 0, 30, 60])])
    sum(rpn.loss(torch.randn(3, 3, 6, 6), truth).values()).backward()
    for layer in (rpn.objectness, rpn.deltas):
        for gradient in (layer.weight.grad, layer.bias.grad):
            of_class = gradient.view(5, -1).abs().sum(1)
            assert (of_class[[0, 2, 4]] == 0).all() and (of_class[[1, 3]] > 0).all()


def test_eight_anchors_an_image():
    rpn = square_rpn(2)
    rpn.objectness.bias.requires_grad_(False)
    feature = torch.zeros(2, 1, 8, 8, requires_grad=True)
    nn.init.ones_(rpn.objectness.weight)
    truth = pad_targets(
        [target(0, *([[16 * x - 8, 16 * y - 8, 16 * x + 8, 16 * y + 8] for x in (1, 3, 5) for y in (1, 3)]))] * 2
    )
    rpn.loss(feature, truth)["loss_rpn_objectness"].backward()
    # Six anchors lie on objects; four of them and four others enter.
    assert (feature.grad < 0).flatten(1).sum(1).tolist() == [4, 4]
    assert (feature.grad > 0).flatten(1).sum(1).tolist() == [4, 4]


def test_class_of_an_image_is_that_of_its_first_object_that_counts():
    rpn = square_rpn(3, batch_size_per_image=64, positive_fraction=1.0)
    two = Target(
        torch.tensor([[-8.0, -8, 8, 8], [8, -8, 24, 8], [24, -8, 40, 8]]),
        torch.tensor([0, 2, 1]),
        torch.tensor([True, False, False]),
        0,
        (64, 64),
    )
    rpn.loss(torch.ones(1, 1, 1, 3), pad_targets([two]))["loss_rpn_objectness"].backward()
    # Class 2: the first anchor is ignored, the second is positive, the third is of another class: background.
    assert rpn.objectness.bias.grad.tolist() == [0, 0, 0]  # (sigmoid(0) - 1 + sigmoid(0)) / 2
    rpn.objectness.bias.grad = None
    with torch.no_grad():
        rpn.objectness.bias[2] = math.log(3)
    rpn.loss(torch.ones(1, 1, 1, 3), pad_targets([two]))["loss_rpn_objectness"].backward()
    assert_close(rpn.objectness.bias.grad, torch.tensor([0, 0, (0.75 - 1 + 0.75) / 2]))


@pytest.mark.parametrize("boxes", [(), ([0.0, 0, 128, 128],)], ids=["no objects", "all a crowd"])
def test_an_image_without_a_class_gives_no_loss(boxes):
    rpn = small_rpn()
    feature = torch.randn(2, 3, 4, 4)
    alone = target(1, [8, 8, 24, 24])
    torch.manual_seed(1)
    both = rpn.loss(feature, pad_targets([alone, target(4, *boxes, ignore=True)]))
    sum(both.values()).backward()
    assert (rpn.objectness.weight.grad.view(5, -1).abs().sum(1) > 0).tolist() == [False, True, False, False, False]
    none = rpn.loss(feature[:1], pad_targets([target(4, *boxes, ignore=True)]))
    assert none["loss_rpn_objectness"] == 0 and none["loss_rpn_box"] == 0


class Largest(TorchDispatchMode):
    """The number of elements of every tensor that an operator makes anew, views of it apart."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        answer = function(*arguments, **(keywords or {}))
        known = {a.untyped_storage().data_ptr() for a in arguments if isinstance(a, torch.Tensor)}
        if isinstance(answer, torch.Tensor) and answer.untyped_storage().data_ptr() not in known:
            self.sizes.append(answer.numel())
        return answer


def made_in_a_step(num_classes: int) -> list[int]:
    """Sizes of all tensors made in a step but for the parameters' gradients, in order."""
    rpn = small_rpn(num_classes, channels=8)
    feature = torch.randn(2, 8, 4, 4, requires_grad=True)
    truth = pad_targets([target(0, [8, 8, 40, 40]), target(1, [8, 8, 24, 24])])
    with Largest() as made:
        sum(rpn.loss(feature, truth).values()).backward()
    parameters = {p.numel() for p in rpn.parameters()}
    gradients = [size for size in made.sizes if size in parameters]
    assert len(gradients) == 4  # each once, whatever the number of images
    return [size for size in made.sizes if size not in parameters]


def test_only_weights_and_their_gradients_grow_with_the_classes():
    few, many = made_in_a_step(1009), made_in_a_step(2003)  # primes: no other tensor is as large by chance
    assert few == many and max(few) < 1009
