from __future__ import annotations

import pytest
import torch
from torch import nn

from resdet.analysis.class_errors import Answers, ask, class_rows, confusion, error_bars, worst_images, worst_pairs
from resdet.classification.classifier import Classifier
from resdet.errors import InputError

CLASSES = ("cat", "dog", "owl", "yak")
# cat: 3 images, two taken for dogs; dog: right; owl: one right, one taken for a cat; no yak
SAID = Answers(
    torch.tensor([0, 0, 0, 1, 2, 2]), torch.tensor([0, 1, 1, 1, 2, 0]), torch.tensor([0.1, 2.0, 3.0, 0.2, 0.5, 3.0])
)


def test_by_hand():
    assert confusion(SAID, 4).tolist() == [[1, 2, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    cat, dog, owl, yak = class_rows(SAID, CLASSES)
    assert cat == ("cat", 3, pytest.approx(2 / 3), 1 / 2, pytest.approx(5.1 / 3))  # of two taken for cats one is
    assert dog == ("dog", 1, 0, pytest.approx(1 / 3), pytest.approx(0.2))
    assert owl == ("owl", 2, 0.5, 1, pytest.approx(1.75))
    assert yak == ("yak", 0, None, None, None)
    pairs = worst_pairs(SAID, CLASSES)
    assert pairs == [("cat", "dog", 2, pytest.approx(2 / 3)), ("owl", "cat", 1, 0.5)]
    assert worst_pairs(SAID, CLASSES, count=1) == pairs[:1]
    assert worst_images(SAID, count=3) == [2, 5, 1]  # equal losses in their order
    classes, confusions = error_bars([cat, dog, owl, yak], pairs)
    assert classes.names == ["cat", "owl", "dog"]
    assert confusions.names == ["cat → dog", "owl → cat"]


class Mean(nn.Module):
    def forward(self, images):
        return images.mean((2, 3))


def test_ask_keeps_the_order():
    images = torch.zeros(3, 3, 2, 2, dtype=torch.uint8)
    images[0, 0], images[1, 1], images[2, 2] = 1, 2, 3
    labels = torch.tensor([0, 1, 0])
    classifier = Classifier(Mean(), mean=(0, 0, 0), std=(1, 1, 1))
    said = ask(classifier, [(images[:2], labels[:2]), (images[2:], labels[2:])])
    assert (said.labels.tolist(), said.predicted.tolist()) == ([0, 1, 0], [0, 1, 2])
    logits = torch.diag(torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(said.losses, -logits.log_softmax(1)[torch.arange(3), labels])


def test_errors():
    with pytest.raises(InputError, match=r"(?s)class errors.*no images"):
        ask(Classifier(Mean()), [])
