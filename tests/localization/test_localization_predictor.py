from __future__ import annotations

import pytest
import torch
from torch import nn

from resdet.classification.classifier import Classifier
from resdet.errors import InputError
from resdet.localization.build import per_class_rpn_localizer, region_localizer
from resdet.localization.predictor import LocalizationPredictor
from resdet.localization.settings import LocalizationTest
from resdet.localization.system import localize


class Brightness(nn.Module):
    """Logits of three classes: the brighter the image's red, green or blue, the more probable."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, images):
        self.seen.append(tuple(images.shape))
        return images.mean(dim=(2, 3))

    def score_map(self, images):
        self.seen.append(tuple(images.shape))
        return images


def classifier():
    return Classifier(Brightness(), mean=(0, 0, 0), std=(1, 1, 1)).eval()


@pytest.fixture(scope="module")
def nets():
    torch.manual_seed(0)
    first = per_class_rpn_localizer(backbone="resnet18-half", num_classes=3, crop=64, anchor_sizes=(24, 48))
    return first.eval(), region_localizer(backbone="resnet18-half", num_classes=3, side=32).eval()


def pictures():
    images = torch.zeros(2, 3, 72, 96, dtype=torch.uint8)
    images[0, 1], images[0, 2], images[1, 2], images[1, 0] = 200, 100, 9, 3
    return list(images)


def test_the_classes_are_those_of_the_classifier(nets):
    settings = LocalizationTest(top=2, classifier_crop=64)
    predictor = LocalizationPredictor([nets[0]], classifiers=[classifier()], settings=settings).eval()
    asked = predictor.top_classes(pictures())
    assert [row.tolist() for row in asked] == [[1, 2], [2, 0]]
    answers = predictor.predict(pictures())
    wanted = localize(pictures(), classes=asked, first=[nets[0]], settings=settings)
    for answer, same in zip(answers, wanted, strict=True):
        assert answer.labels.tolist() == same.labels.tolist()
        torch.testing.assert_close(answer.boxes, same.boxes)
    few = LocalizationPredictor([nets[0]], classifiers=[classifier()], settings=LocalizationTest(classifier_crop=64))
    assert [len(row) for row in few.top_classes(pictures())] == [3, 3]  # of three classes there are no five


def test_given_classes_and_the_second_stage(nets):
    classes = [torch.tensor([2]), torch.tensor([0])]
    settings = LocalizationTest(proposals=5)
    predictor = LocalizationPredictor([nets[0]], second=[nets[1]], settings=settings).eval()
    wanted = localize(pictures(), classes=classes, first=[nets[0]], second=[nets[1]], settings=settings)
    for answer, same in zip(predictor.predict(pictures(), classes), wanted, strict=True):
        torch.testing.assert_close(answer.boxes, same.boxes)
    with pytest.raises(InputError, match=r"none given\n.*test\.classifiers"):
        predictor.predict(pictures())


@pytest.mark.parametrize(
    ("view", "sides", "seen"),
    [
        ("centre", (), [(2, 3, 56, 56)]),  # of a shorter side of 64
        ("ten-crop", (60,), [(2, 3, 56, 56)] * 10),
        ("dense", (), [(4, 3, s, s * 96 // 72) for s in (56, 64, 96, 120, 160)]),  # the paper's five, for 56; mirrored
        ("dense", (60, 90), [(4, 3, 60, 80), (4, 3, 90, 120)]),
    ],
)
def test_views_of_the_classifier(nets, view, sides, seen):
    settings = LocalizationTest(classifier_view=view, classifier_sides=sides, classifier_crop=56)
    net = classifier()
    LocalizationPredictor([nets[0]], classifiers=[net], settings=settings).top_classes(pictures())
    assert net.net.seen == seen


def test_what_does_not_fit(nets):
    other = per_class_rpn_localizer(backbone="resnet18-half", num_classes=4, crop=64, anchor_sizes=(24, 48))
    with pytest.raises(InputError, match=r"classes \[3, 4\]|\[3, 4\] classes"):
        LocalizationPredictor([nets[0], other])
    for settings, words in (
        (LocalizationTest(sides=(40,)), "64 or more"),
        (LocalizationTest(classifier_sides=(224, 256)), "one shorter side"),
    ):
        with pytest.raises(InputError, match=words):
            LocalizationPredictor([nets[0]], settings=settings)
