from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resdet.analysis.responses import layer_responses, response_panels
from resdet.backbones.weights import init_backbone
from resdet.classification.classifier import Classifier
from resdet.errors import InputError


def random_net(name):
    torch.manual_seed(0)
    net = init_backbone(name, None, num_classes=3)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return Classifier(net)


def batches(*sizes):
    chance = torch.Generator().manual_seed(1)
    return [(torch.randint(256, (n, 3, 16, 16), generator=chance, dtype=torch.uint8), torch.arange(n)) for n in sizes]


def test_by_hand():
    """The centre of the kernel doubles 1, 2, 3, 6 to 2, 4, 6, 12; BN (v - 2) / 2 makes 0, 1, 2, 5: mean 2, deviations
    -2, -1, 0, 3, variance 14 / 4.
    """

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(1, 1, 3, padding=1, bias=False), nn.BatchNorm2d(1, eps=0)
            nn.init.zeros_(self.conv.weight)
            self.conv.weight.data[0, 0, 1, 1] = 2
            self.bn.running_mean.fill_(2)
            self.bn.running_var.fill_(4)

        def forward(self, images):
            return F.relu(self.bn(self.conv(images[:, :1])), inplace=True).flatten(1)

    image = torch.tensor([1, 2, 3, 6], dtype=torch.uint8).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    classifier = Classifier(Net(), mean=(0, 0, 0), std=(1, 1, 1))
    found = layer_responses(classifier, [(image, torch.zeros(1))])
    assert found == {"conv": pytest.approx((14 / 4) ** 0.5)}


def test_against_a_pass_by_hand():
    """Two batches of unequal size pool to the deviation over all values."""
    classifier = random_net("cifar-resnet8")
    found = layer_responses(classifier, batches(3, 2))
    net, expected = classifier.net.eval(), []
    with torch.no_grad():
        x = net.bn1(net.conv1(classifier.normalise(torch.cat([images for images, _ in batches(3, 2)]))))
        expected.append(x.std(unbiased=False))
        x = F.relu(x)
        for block in (net.layer1[0], net.layer2[0], net.layer3[0]):
            first = block.bn1(block.conv1(x))
            second = block.bn2(block.conv2(F.relu(first)))
            expected += [first.std(unbiased=False), second.std(unbiased=False)]
            x = F.relu(second + block.downsample(x))
    assert list(found) == ["conv1", *(f"layer{s}.0.conv{c}" for s in (1, 2, 3) for c in (1, 2))]
    torch.testing.assert_close(torch.tensor(list(found.values())), torch.stack(expected))
    assert not any(module._forward_hooks for module in classifier.modules())


def test_preactivation_is_taken_before_the_addition():
    """conv1 feeds a BN directly; conv2 is the last of its block: its own output is the response."""
    classifier = random_net("cifar-preresnet8")
    found = layer_responses(classifier, batches(2))
    block = classifier.net.layer1[0]
    with torch.no_grad():
        x = F.relu(classifier.net.bn1(classifier.net.conv1(classifier.normalise(batches(2)[0][0]))))
        middle = block.bn2(block.conv1(x))
        assert found["layer1.0.conv1"] == pytest.approx(float(middle.std(unbiased=False)), rel=1e-5)
        last = block.conv2(F.relu(middle))
    assert found["layer1.0.conv2"] == pytest.approx(float(last.std(unbiased=False)), rel=1e-5)


def test_projections_are_no_layers_of_the_figure():
    found = layer_responses(random_net("cifar-resnet8-B"), batches(1))
    assert len(found) == 7 and not any("downsample" in name for name in found)


def test_panels_in_order_and_sorted():
    ordered, by_size = response_panels({"net": {"a": 1.0, "b": 3.0, "c": 2.0}})
    assert list(ordered.lines[0].x) == [1, 2, 3]
    assert (list(ordered.lines[0].y), by_size.lines[0].y) == ([1.0, 3.0, 2.0], [3.0, 2.0, 1.0])


def test_errors():
    with pytest.raises(InputError, match=r"(?s)layer responses.*no response of a 3x3 convolution"):
        layer_responses(random_net("cifar-resnet8"), [])
