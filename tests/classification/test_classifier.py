from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from resdet.classification.classifier import Classifier
from resdet.errors import InputError


class FirstPixel(nn.Module):
    """The normalised R, G, B of the first pixel, as logits."""

    def forward(self, x):
        return x[:, :, 0, 0]


def test_normalisation_by_hand():
    model = Classifier(FirstPixel(), mean=(100.0, 50.0, 0.0), std=(50.0, 25.0, 10.0))
    images = torch.tensor([150, 25, 30], dtype=torch.uint8).view(1, 3, 1, 1)
    # (150 - 100) / 50 = 1, (25 - 50) / 25 = -1, 30 / 10 = 3
    torch.testing.assert_close(model.predict(images), torch.tensor([[1.0, -1.0, 3.0]]))
    torch.testing.assert_close(model.predict(images.float()), model.predict(images))


def test_loss_by_hand():
    model = Classifier(FirstPixel(), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    images = torch.tensor([[1, 1, 1], [2, 0, 0]], dtype=torch.uint8).view(2, 3, 1, 1)
    # log 3, and log(e^2 + 2) - 2; then their mean
    losses = model.loss(images, torch.tensor([1, 0]))
    expected = (math.log(3) + math.log(math.exp(2) + 2) - 2) / 2
    assert set(losses) == {"loss_cls", "error"}
    torch.testing.assert_close(losses["loss_cls"], torch.tensor(expected))
    # Smoothing 0.3: of the second image, 0.8 on class 0 and 0.1 on each other: adds 0.2 x (2 - 0); first unchanged
    smooth = Classifier(FirstPixel(), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), label_smoothing=0.3)
    torch.testing.assert_close(smooth.loss(images, torch.tensor([1, 0]))["loss_cls"], torch.tensor(expected + 0.2))


def test_default_mean_and_std_are_torchvisions():
    images = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    normalised = Classifier(nn.Identity()).normalise(images)
    torch.testing.assert_close(normalised, (images / 255 - mean) / std)
    assert normalised.is_contiguous(memory_format=torch.channels_last)


def test_training_reaches_the_net_and_only_the_net_is_saved():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = Classifier(net)
    model.loss(torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8), torch.tensor([0, 3]))["loss_cls"].backward()
    assert net[0].weight.grad.abs().sum() > 0
    assert set(model.state_dict()) == {"net.0.weight", "net.0.bias"}
    assert model.net[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_half_precision_nets_answer_in_float32():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = Classifier(net).bfloat16()
    assert model.predict(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)).dtype == torch.float32


def test_no_images():
    assert Classifier(FirstPixel()).predict(torch.zeros(0, 3, 2, 2, dtype=torch.uint8)).shape == (0, 3)


def test_errors():
    with pytest.raises(InputError, match=r"shape \(3, 8, 8\)"):
        Classifier(FirstPixel()).predict(torch.zeros(3, 8, 8, dtype=torch.uint8))
    with pytest.raises(InputError, match="label_smoothing = 1"):
        Classifier(FirstPixel(), label_smoothing=1.0)
    with pytest.raises(InputError, match="three std above 0"):
        Classifier(FirstPixel(), std=(1.0, 0.0, 1.0))
