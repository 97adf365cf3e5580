from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from resdet.detection.anchors import Anchors
from resdet.detection.matching import pad_targets
from resdet.detection.rpn import RPN, RPNHead, TopK
from resdet.errors import InputError
from resdet.structures import Target


def target(*boxes, ignore=False) -> Target:
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    mask = torch.full((len(boxes),), ignore)
    return Target(boxes, torch.zeros(len(boxes), dtype=torch.long), mask, 0, (64, 64))


class Said(nn.Module):
    """A head that answers what it was given."""

    def __init__(self, logits, deltas=None):
        super().__init__()
        self.logits = [nn.Parameter(level) for level in logits]
        deltas = [torch.zeros(*level.shape, 4) for level in logits] if deltas is None else deltas
        self.deltas = [nn.Parameter(level) for level in deltas]

    def forward(self, features):
        return self.logits, self.deltas


ALL = TopK(100, 100)


def square_rpn(*sizes: int, cut: TopK = ALL, **settings) -> RPN:
    """One square anchor per cell; level i has stride 16 * 2^i."""
    anchors = Anchors([(s,) for s in sizes], [16 * 2**i for i in range(len(sizes))], ratios=(1.0,))
    return RPN(4, anchors, train_topk=cut, test_topk=cut, **settings)


def maps(images: int, *sides: tuple[int, int]) -> list[torch.Tensor]:
    return [torch.randn(images, 4, *hw, generator=torch.Generator().manual_seed(0)) for hw in sides]


def limits(*hw: tuple[int, int]) -> torch.Tensor:
    return torch.tensor([(w, h, w, h) for h, w in hw], dtype=torch.float32)


def test_a_deeper_head():
    # Each convolution passes the middle on and adds 1: after two, 2 + x where nothing was below zero on the way.
    head = RPNHead(1, 1, convs=2)
    for conv in (head.conv, *head.deeper):
        nn.init.zeros_(conv.weight), nn.init.ones_(conv.bias)
        conv.weight.data[0, 0, 1, 1] = 1
    nn.init.ones_(head.objectness.weight)
    (logits,), _ = head([torch.tensor([[1.0, -3.0]])[None, None]])
    assert_close(logits, torch.tensor([[3.0, 1.0]]))  # max(0, -3 + 1) + 1
    with pytest.raises(InputError, match=r"convolutions of the RPN\n  found:  0\n  needed: 1 or more"):
        RPNHead(1, 1, convs=0)


def test_head_answers_in_the_order_of_the_anchors():
    head = RPNHead(1, 2)
    nn.init.zeros_(head.conv.weight)
    with torch.no_grad():
        head.conv.weight[0, 0, 1, 1] = 1  # passes the map on
        head.objectness.weight.copy_(torch.tensor([1.0, 10]).view(2, 1, 1, 1))
        head.deltas.weight.copy_(torch.tensor([1.0, 2, 3, 4, 10, 20, 30, 40]).view(8, 1, 1, 1))
        (logits,), (deltas,) = head([torch.tensor([[1.0, 2, 3], [4, 5, -6]])[None, None]])
    values = torch.tensor([1.0, 2, 3, 4, 5, 0])[:, None]  # row by row, after ReLU; a cell's anchors together
    assert_close(logits, (values * torch.tensor([1.0, 10])).reshape(1, 12))
    assert_close(deltas[0, :, 0], (values * torch.tensor([1.0, 10])).flatten())
    assert_close(deltas[0, 1], torch.tensor([10.0, 20, 30, 40]))


def test_initial_weights():
    head = RPNHead(64, 3)
    for layer in (head.conv, head.objectness, head.deltas):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.2) and (layer.bias == 0).all()


def test_proposals_by_hand():
    # Anchors of side 16 on x = 0, 16, 32: [-8, -8, 8, 8], [8, -8, 24, 8], [24, -8, 40, 8]; the image is 36 x 20.
    rpn = square_rpn(16).eval()
    deltas = torch.zeros(1, 3, 4)
    deltas[0, 1] = torch.tensor([0.25, 0.5, math.log(0.5), 0])  # centre (16, 0) to (20, 8), width 16 to 8
    rpn.head = Said([torch.tensor([[1.0, 3, 2]])], [deltas])
    found, losses = rpn(maps(1, (1, 3)), limits((20, 36)))
    assert losses == {}
    assert_close(found.boxes, torch.tensor([[[16.0, 0, 24, 16], [24, 0, 36, 8], [0, 0, 8, 8]]]))
    assert_close(found.scores, torch.tensor([[3.0, 2, 1]]))
    assert found.valid.all()


def test_what_clipping_leaves_empty_is_dropped():
    rpn = square_rpn(16).eval()
    rpn.head = Said([torch.tensor([[1.0, 2, 3]] * 2)])
    # The second image is 8 wide: the anchors from 8 and 24 on are outside. Their places stay, zero and not valid.
    found, _ = rpn(maps(2, (1, 3)), limits((16, 48), (16, 8)))
    assert found.valid.tolist() == [[True] * 3, [True, False, False]]
    assert_close(found.boxes[1], torch.tensor([[0.0, 0, 8, 8], [0, 0, 0, 0], [0, 0, 0, 0]]))


def test_nothing_left():
    rpn = square_rpn(16).eval()
    rpn.head = Said([torch.zeros(1, 1)], [torch.tensor([[[-9.0, 0, 0, 0]]])])  # moved out to the left
    found, _ = rpn(maps(1, (1, 1)), limits((16, 16)))
    assert found.boxes.shape == (1, 1, 4) and not found.valid.any()


def test_levels_do_not_suppress_each_other():
    # Both levels' first anchor is the same square; the second of the fine level overlaps its first by half.
    rpn = square_rpn(32, 32, nms_iou=0.3).eval()
    rpn.head = Said([torch.tensor([[3.0, 2]]), torch.tensor([[1.0]])])
    found, _ = rpn(maps(1, (1, 2), (1, 1)), limits((64, 64)))
    assert_close(found.scores, torch.tensor([[3.0, 1]]))
    assert_close(found.boxes[0, 0], found.boxes[0, 1])


def test_topks():
    rpn = square_rpn(8, 8, cut=TopK(pre_nms=2, post_nms=3))
    rpn.test_topk = TopK(pre_nms=1, post_nms=5)
    rpn.head = Said([torch.tensor([[1.0, 9, 7, 5]]), torch.tensor([[2.0, 8, 6, 4]])])
    features = maps(1, (1, 4), (1, 4))
    assert_close(rpn(features, limits((64, 256)))[0].scores, torch.tensor([[9.0, 8, 7]]))  # two of each, then three
    assert_close(rpn.eval()(features, limits((64, 256)))[0].scores, torch.tensor([[9.0, 8]]))


def test_a_batch_is_its_images():
    torch.manual_seed(0)
    anchors = Anchors([(16, 24), (32, 48)], [8, 16])
    rpn = RPN(4, anchors, train_topk=TopK(60, 40), test_topk=TopK(60, 40)).eval()
    nn.init.normal_(rpn.head.objectness.weight, std=5)
    nn.init.normal_(rpn.head.deltas.weight, std=5)
    features, sizes = maps(3, (8, 10), (4, 5)), limits((64, 80), (40, 64), (10, 12))
    found, _ = rpn(features, sizes)
    assert 1 < found.valid[2].sum() < found.valid[0].sum()
    for n in range(3):
        alone, _ = rpn([f[n : n + 1] for f in features], sizes[n : n + 1])
        assert alone.valid.all()
        boxes = found.boxes[n][found.valid[n]]
        assert_close(boxes, alone.boxes[0])
        assert_close(found.scores[n][found.valid[n]], alone.scores[0])
        assert (boxes >= 0).all() and (boxes <= sizes[n]).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_losses_by_hand():
    # Anchors [-8, -8, 8, 8], [8, -8, 24, 8], [24, -8, 40, 8]. The object is the second, 2 px further right:
    # IoU 14 / 18 = 0.78. The others share 2 px (IoU 2 / 30) or nothing: background.
    rpn = square_rpn(16, beta=0.0)
    rpn.head = Said([torch.tensor([[0.0, math.log(3), 0.0]])])
    _, losses = rpn(maps(1, (1, 3)), limits((32, 64)), pad_targets([target([10, -8, 26, 8])]))
    # -log sigmoid(log 3) = log 4/3; log 2 for each background. The delta wanted is (2/16, 0, 0, 0), told was 0.
    assert_close(losses["loss_rpn_objectness"], torch.tensor((math.log(4 / 3) + 2 * math.log(2)) / 3))
    assert_close(losses["loss_rpn_box"], torch.tensor(0.125 / 3))
    assert set(losses) == {"loss_rpn_objectness", "loss_rpn_box"}


def test_best_anchor_of_an_object_by_hand():
    # The object overlaps the second anchor by 13 / 30 = 0.43, which is neither, and the third by 14 / 29 = 0.48: too
    # little, but nobody has more. The first is background.
    rpn = square_rpn(16, beta=0.0)
    rpn.head = Said([torch.tensor([[0.0, math.log(3), 0.0]])])
    _, losses = rpn(maps(1, (1, 3)), limits((32, 64)), pad_targets([target([11, -8, 38, 8])]))
    # Two in doubt. From centre 32 and width 16 to 24.5 and 27: dx = -7.5 / 16, dw = log 27/16.
    assert_close(losses["loss_rpn_objectness"], torch.tensor(math.log(2)))
    assert_close(losses["loss_rpn_box"], torch.tensor((7.5 / 16 + math.log(27 / 16)) / 2))


def test_only_sampled_anchors_learn():
    torch.manual_seed(0)
    rpn = square_rpn(16, batch_size_per_image=6)
    rpn.head = Said([torch.zeros(2, 64)], [torch.full((2, 64, 4), 0.3)])
    truth = pad_targets([target([8, 8, 24, 24]), target()])
    _, losses = rpn(maps(2, (8, 8)), limits((128, 128), (128, 128)), truth)
    sum(losses.values()).backward()
    assert (rpn.head.logits[0].grad != 0).sum(1).tolist() == [6, 6]
    assert (rpn.head.logits[0].grad < 0).sum(1).tolist() == [1, 0]  # the one positive is to rise
    assert rpn.head.deltas[0].grad.abs().amax(-1).gt(0).sum(1).tolist() == [1, 0]


@pytest.mark.parametrize("boxes", [(), ([0.0, 0, 128, 128],)], ids=["no objects", "all a crowd"])
def test_images_without_objects(boxes):
    rpn = square_rpn(16)
    rpn.head = Said([torch.zeros(1, 64)])
    _, losses = rpn(maps(1, (8, 8)), limits((128, 128)), pad_targets([target(*boxes, ignore=True)]))
    # Without objects all is background, at log 2 each. Within a crowd nothing is, but for the anchors that centre on
    # the image's left and upper edge: half of each is inside (enough), and of the corner's a quarter (too little).
    assert_close(losses["loss_rpn_objectness"], torch.tensor(math.log(2)))
    assert losses["loss_rpn_box"] == 0
    sum(losses.values()).backward()
    taken = (rpn.head.logits[0].grad != 0).sum()
    assert taken == (1 if boxes else 64)
