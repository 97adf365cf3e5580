from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from resdet import boxes as box_ops
from resdet.detection.preprocess import Preprocess
from resdet.localization import region_localizer
from resdet.localization.region_localizer import RegionLocalizer
from resdet.structures import ClassBoxes, RegionTarget


def raw(side: int) -> Preprocess:
    """Pixels as they are."""
    return Preprocess(side, side, mean=(0, 0, 0), std=(1, 1, 1))


class MeanColour(nn.Module):
    def forward(self, regions):
        return regions.mean(dim=(2, 3)) / 255


def colour_net(side: int = 4, num_classes: int = 3) -> RegionLocalizer:
    torch.manual_seed(0)
    net = RegionLocalizer(raw(side), MeanColour(), 3, num_classes=num_classes)
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    return net


def noise(*hw: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (3, *hw), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_warp_by_hand():
    net, image = RegionLocalizer(raw(2), nn.Identity(), 1, num_classes=1), noise(8, 8)
    # A region of 2 x 2 whole pixels is those pixels; one of 4 x 6 is the mean of each 2 x 3 quarter.
    cut = net.warp(image, torch.tensor([[3.0, 1, 5, 3], [0, 2, 6, 6]]))
    assert_close(cut[0], image[:, 1:3, 3:5].float())
    assert_close(cut[1], F.avg_pool2d(image[:, 2:6, 0:6].float(), (2, 3)))


def test_a_stripe_pattern_does_not_alias():
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    image[:, :, ::2] = 200
    cut = RegionLocalizer(raw(8), nn.Identity(), 1, num_classes=1).warp(image, torch.tensor([[0.0, 0, 64, 64]]))
    assert_close(cut, torch.full((1, 3, 8, 8), 100.0))  # one sample a bin would see 200, or nothing


def test_growing_interpolates():
    image = torch.tensor([[0, 80]], dtype=torch.uint8).expand(3, 1, 2)
    cut = RegionLocalizer(raw(4), nn.Identity(), 1, num_classes=1).warp(image, torch.tensor([[0.0, 0, 2, 1]]))
    # Bins centre on x = 0.25, 0.75, 1.25, 1.75; pixels on 0.5 and 1.5.
    assert_close(cut[0, 0, 0], torch.tensor([0.0, 20, 60, 80]))


def test_normalisation():
    net = RegionLocalizer(Preprocess(1, 1, mean=(10, 20, 30), std=(2, 4, 5)), nn.Identity(), 1, num_classes=1)
    cut = net.warp(torch.tensor([20, 40, 80], dtype=torch.uint8).view(3, 1, 1), torch.tensor([[0.0, 0, 1, 1]]))
    assert_close(cut.flatten(), torch.tensor([5.0, 5, 10]))


def test_outputs_are_those_of_the_whole_layers():
    net = colour_net()
    regions, classes = torch.rand(5, 3, 4, 4) * 255, torch.tensor([2, 0, 2, 1, 1])
    logits, deltas = net(regions, classes)
    vectors, rows = net.net(regions), torch.arange(5)
    assert_close(logits, net.scores(vectors)[rows, classes])
    assert_close(deltas, net.deltas(vectors).view(5, 3, 4)[rows, classes])


def test_initial_weights():
    net = RegionLocalizer(raw(4), nn.Identity(), 500, num_classes=20)
    assert net.scores.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert net.deltas.weight.std().item() == pytest.approx(0.001, rel=0.1)
    assert net.scores.bias.abs().sum() + net.deltas.bias.abs().sum() == 0


def test_loss_by_hand():
    net = colour_net()
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    with torch.no_grad():
        net.scores.bias.copy_(torch.tensor([9.0, math.log(3), 9]))
    boxes, goal = torch.tensor([[0.0, 0, 4, 4], [4, 4, 8, 8]]), torch.tensor([[0.2, 0, 4.2, 4]])
    regions = RegionTarget(boxes, goal.expand(2, 4), torch.tensor(1), torch.tensor([True, False]))
    losses = net.loss([noise(8, 8)], [regions])
    # log 4/3 of the positive, log 4 of the other. dx = 0.2 / 4 x 10 = 0.5, quadratic: 0.125; over two regions.
    assert set(losses) == {"loss_region_score", "loss_region_box"}
    assert_close(losses["loss_region_score"], torch.tensor((math.log(4 / 3) + math.log(4)) / 2))
    assert_close(losses["loss_region_box"], torch.tensor(0.125 / 2))


def test_loss_of_several_images_is_that_of_all_their_regions():
    net, images = colour_net(num_classes=5), [noise(20, 30), noise(25, 15, seed=1)]
    torch.manual_seed(2)
    targets = []
    for count, label in ((3, 4), (2, 0)):
        corner = torch.rand(count, 2) * 8
        boxes = torch.cat([corner, corner + 4], 1)
        targets.append(RegionTarget(boxes, boxes + 0.3, torch.tensor(label), torch.arange(count) < 1))
    losses = net.loss(images, targets)
    score = box = 0
    for image, target in zip(images, targets, strict=True):
        for region, goal, positive in zip(target.boxes, target.matched_gt_boxes, target.positive, strict=True):
            vector = net.net(net.warp(image, region[None]))
            logit, delta = net.scores(vector)[0, target.label], net.deltas(vector).view(5, 4)[target.label]
            score = score - F.logsigmoid(logit if positive else -logit)
            if positive:
                off = (delta - box_ops.encode(region, goal, box_ops.HEAD)).abs()
                box = box + torch.where(off < 1, off**2 / 2, off - 0.5).sum()
    assert_close(losses["loss_region_score"], score / 5)
    assert_close(losses["loss_region_box"], box / 5)
    sum(losses.values()).backward()
    for layer in (net.scores, net.deltas):
        of_class = layer.weight.grad.view(5, -1).abs().sum(1)
        assert (of_class[1:4] == 0).all() and (of_class[[0, 4]] > 0).all()


def proposals(labels: list[int], count: int, *, seed: int) -> ClassBoxes:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(len(labels), count, 2, generator=generator) * 8
    return ClassBoxes(torch.tensor(labels), torch.cat([corner, corner + 6], 2), torch.rand(len(labels), count))


def test_rescoring_is_that_of_a_loop(monkeypatch):
    monkeypatch.setattr(region_localizer, "PIXELS_AT_ONCE", 3 * 4 * 4)  # three regions at once, of ten
    net, images = colour_net().eval(), [noise(10, 30), noise(30, 10, seed=1)]
    passes = []
    net.net.register_forward_hook(lambda module, inputs, output: passes.append(len(output)))
    normalised, once = [], net._normalised
    monkeypatch.setattr(net, "_normalised", lambda image: (normalised.append(image), once(image))[1])
    given = [proposals([2, 0], 5, seed=0), proposals([1, 1], 5, seed=1)]
    found = net.rescore(images, given)
    assert passes == [3, 3, 3, 1] * 2 and len(normalised) == 2
    for image, before, after in zip(images, given, found, strict=True):
        assert after.labels.tolist() == before.labels.tolist()
        limits = torch.tensor([image.shape[2], image.shape[1]] * 2)
        for c, k in enumerate(before.labels):
            for p, box in enumerate(before.boxes[c]):
                vector = net.net(net.warp(image, box[None]))
                assert_close(after.scores[c, p], net.scores(vector)[0, k].sigmoid())
                moved = box_ops.decode(net.deltas(vector).view(3, 4)[k], box, box_ops.HEAD)
                assert_close(after.boxes[c, p], box_ops.clip(moved, limits))
    for answer, after in zip(net.predict(images, given), found, strict=True):
        assert_close(answer.scores, after.scores.amax(1))
    assert not found[0].scores.requires_grad


def test_what_the_border_leaves_nothing_of_has_score_zero():
    net = colour_net()
    with torch.no_grad():
        net.deltas.bias[0] = 1e4  # class 0 moves far to the right
    (found,) = net.rescore([noise(20, 20)], [proposals([0, 1], 4, seed=0)])
    assert (found.scores[0] == 0).all() and (found.scores[1] > 0).all()
