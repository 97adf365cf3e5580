from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from resdet.errors import InputError
from resdet.localization.build import per_class_rpn_localizer
from resdet.localization.ensemble import average, check_classes, merge
from resdet.structures import ClassBoxes


def answer(score: float, *box: float) -> ClassBoxes:
    return ClassBoxes(torch.tensor([4]), torch.tensor(box, dtype=torch.float32).view(1, 1, 4), torch.tensor([[score]]))


def localizer(num_classes: int = 3, **settings):
    return per_class_rpn_localizer(backbone="resnet18-half", num_classes=num_classes, crop=64, **settings)


def test_average_by_hand():
    found = average([answer(0.2, 0, 0, 10, 10), answer(0.6, 2, 4, 10, 30)])
    assert found.labels.tolist() == [4]
    assert_close(found.boxes, torch.tensor([[[1.0, 2, 10, 20]]]))
    assert_close(found.scores, torch.tensor([[0.4]]))


def test_nets_of_the_same_anchors_are_averaged_and_others_joined():
    answers = [answer(0.2, 0, 0, 10, 10), answer(0.6, 2, 4, 10, 30)]
    assert merge([localizer(), localizer()], answers).scores.tolist() == average(answers).scores.tolist()
    joined = merge([localizer(), localizer(anchor_sizes=(32, 64, 128))], answers)
    assert_close(joined.boxes, torch.tensor([[[0.0, 0, 10, 10], [2, 4, 10, 30]]]))


def test_errors():
    check_classes([localizer(), localizer()])
    with pytest.raises(InputError, match=r"nets of \[3, 4\] classes"):
        check_classes([localizer(), localizer(4)])
    with pytest.raises(InputError, match="found:  no net"):
        check_classes([])
