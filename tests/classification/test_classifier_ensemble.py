from __future__ import annotations

import pytest
import torch
from torch import nn

from resdet.classification.classifier import Classifier
from resdet.classification.ensemble import Ensemble
from resdet.errors import InputError


class FirstPixel(nn.Module):
    """The normalised R, G, B of the first pixel, as logits."""

    def forward(self, x):
        return x[:, :, 0, 0]


def first_pixel(mean: float, std: float) -> Classifier:
    return Classifier(FirstPixel(), mean=(mean, mean, mean), std=(std, std, std))


def test_by_hand_with_two_normalisations():
    images = torch.tensor([100, 0, 0], dtype=torch.uint8).view(1, 3, 1, 1)
    # First net: logits (100 - 0) / 50 = 2, 0, 0; second: (100 - 100) / 25 = 0, -4, -4.
    first = torch.tensor([2.0, 0.0, 0.0]).softmax(0)
    second = torch.tensor([0.0, -4.0, -4.0]).softmax(0)
    predicted = Ensemble([first_pixel(0.0, 50.0), first_pixel(100.0, 25.0)]).predict(images)
    torch.testing.assert_close(predicted, ((first + second) / 2).log()[None])
    assert predicted.dtype == torch.float32


def test_the_same_net_twice_is_that_net():
    net = first_pixel(90.0, 30.0)
    images = torch.randint(0, 256, (4, 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(Ensemble([net]).predict(images), net.predict(images), rtol=0, atol=0)
    twice = Ensemble([net, net]).predict(images)
    torch.testing.assert_close(twice.exp(), net.predict(images).softmax(1))


def test_views_and_nets_weigh_alike():
    nets = [first_pixel(0.0, 50.0), first_pixel(90.0, 20.0), first_pixel(30.0, 90.0)]
    images = torch.randint(0, 256, (4, 5, 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    each = [net.predict(view).softmax(1) for net in nets for view in images.unbind(1)]
    torch.testing.assert_close(Ensemble(nets).predict(images), (sum(each) / 15).log())


def test_modes_and_devices_reach_every_net():
    ensemble = Ensemble([first_pixel(0.0, 1.0), first_pixel(0.0, 2.0)])
    assert not any(module.training for module in ensemble.eval().modules())
    assert ensemble.to("meta").classifiers[1].std.device.type == "meta"


def test_errors():
    with pytest.raises(InputError, match="no classifier"):
        Ensemble([])
    two = Classifier(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)))
    with pytest.raises(InputError, match="nets of 3, 2 classes"):
        Ensemble([first_pixel(0.0, 1.0), two]).predict(torch.zeros(1, 3, 4, 4))
