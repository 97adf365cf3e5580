from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from resdet.errors import InputError
from resdet.localization.build import per_class_rpn_localizer, region_localizer
from resdet.localization.ensemble import average
from resdet.localization.selection import best, join, propose_best
from resdet.localization.settings import LocalizationTest
from resdet.localization.system import localize, propose

SETTINGS = LocalizationTest(view="dense", sides=(64, 96), proposals=7)
CLASSES = [torch.tensor([4, 1]), torch.tensor([0, 2])]


def first_net(seed: int = 0, num_classes: int = 5, **settings) -> nn.Module:
    torch.manual_seed(seed)
    net = per_class_rpn_localizer(
        backbone="resnet18-half", num_classes=num_classes, crop=64, anchor_sizes=(16, 32, 64), **settings
    )
    return net.eval()


def second_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = region_localizer(backbone="resnet18-half", num_classes=5, side=32)
    nn.init.normal_(net.deltas.weight, std=0.1)
    return net.eval()


@pytest.fixture
def images() -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, *hw), dtype=torch.uint8, generator=draw) for hw in ((70, 90), (110, 80))]


def test_one_net_is_itself(images):
    net = first_net()
    for settings in (None, SETTINGS, SETTINGS.updated(vote=0.5)):
        assert_close(
            localize(images, classes=CLASSES, first=[net], settings=settings), net.predict(images, CLASSES, settings)
        )


def test_equal_nets_are_one(images):
    first, second = first_net(), second_net()
    alone = localize(images, classes=CLASSES, first=[first], second=[second], settings=SETTINGS)
    assert_close(localize(images, classes=CLASSES, first=[first], second=[second] * 2, settings=SETTINGS), alone)
    assert_close(localize(images, classes=CLASSES, first=[first] * 2, second=[second], settings=SETTINGS), alone)
    assert_close(
        localize(images, classes=CLASSES, first=[first] * 2, settings=SETTINGS),
        localize(images, classes=CLASSES, first=[first], settings=SETTINGS),
    )


def test_first_stages_are_averaged_by_anchor(images):
    nets = [first_net(0), first_net(1)]
    answers = localize(images, classes=CLASSES, first=nets, settings=SETTINGS)
    for n in range(2):
        of_net = [join([net.candidates(images, CLASSES, look)[n] for look in net.looks(SETTINGS)]) for net in nets]
        assert_close(answers[n], best([average(of_net)])[0])


def test_proposals_are_those_of_each_net(images):
    nets = [first_net(0), first_net(1, anchor_ratios=(1.0,))]
    found = propose(images, classes=CLASSES, first=nets, settings=SETTINGS)
    for n in range(2):
        assert found[n].labels.tolist() == CLASSES[n].tolist() and found[n].boxes.shape == (2, 14, 4)
        candidates = join([nets[1].candidates(images, CLASSES, look)[n] for look in nets[1].looks(SETTINGS)])
        expected = propose_best(candidates, count=7, nms_iou=0.7)
        assert_close(found[n].boxes[:, 7:], expected.boxes)


def test_second_stages_rescore_the_same_proposals(images):
    first, second = [first_net(0), first_net(1)], [second_net(2), second_net(3)]
    proposals = propose(images, classes=CLASSES, first=first, settings=SETTINGS)
    answers = [net.rescore(images, proposals) for net in second]
    expected = best([average(of_image) for of_image in zip(*answers, strict=True)], vote=0.5)
    settings = SETTINGS.updated(vote=0.5)
    assert_close(localize(images, classes=CLASSES, first=first, second=second, settings=settings), expected)


def test_answers_are_for_the_classes_in_their_order(images):
    net = first_net()
    there = localize(images, classes=CLASSES, first=[net], second=[second_net()], settings=SETTINGS)
    back = localize(images, classes=[c.flip(0) for c in CLASSES], first=[net], second=[second_net()], settings=SETTINGS)
    for a, b in zip(there, back, strict=True):
        assert a.labels.tolist() == b.labels.flip(0).tolist()
        assert_close(a.boxes, b.boxes.flip(0))


def test_errors(images):
    with pytest.raises(InputError, match=r"nets of \[5, 6\] classes"):
        localize(images, classes=CLASSES, first=[first_net(num_classes=6)], second=[second_net()])
    with pytest.raises(InputError, match=r"test\.proposals"):
        propose(images, classes=CLASSES, first=[first_net()], settings=LocalizationTest(proposals=0))
    with pytest.raises(InputError, match="found:  no net"):
        localize(images, classes=CLASSES, first=[])
