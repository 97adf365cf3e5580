from __future__ import annotations

import pytest
import torch
from torch import nn

from resdet.analysis.gradients import GradientNorms, batch_statistics, gradient_norms, gradient_panels
from resdet.backbones.weights import init_backbone
from resdet.classification.classifier import Classifier
from resdet.errors import InputError


def classifier(name="cifar-resnet8"):
    torch.manual_seed(0)
    return Classifier(init_backbone(name, None, num_classes=3))


def batch(n):
    chance = torch.Generator().manual_seed(n)
    return torch.randint(256, (n, 3, 16, 16), generator=chance, dtype=torch.uint8), torch.arange(n) % 3


def test_against_a_backward_pass_by_hand():
    net = classifier()
    norms = gradient_norms(net, [batch(4)])
    assert list(norms.blocks) == ["layer1.0", "layer2.0", "layer3.0"]
    images, labels = batch(4)
    net.train()
    bare = net.net
    x, outputs = bare.relu(bare.bn1(bare.conv1(net.normalise(images)))), []
    for block in (bare.layer1[0], bare.layer2[0], bare.layer3[0]):
        x = block(x)
        x.retain_grad()
        outputs.append(x)
    loss = nn.functional.cross_entropy(bare.fc(x.mean((2, 3))), labels, reduction="none")
    loss.sum().backward()
    expected = [float(sum(image.norm() for image in output.grad) / 4) for output in outputs]
    assert list(norms.blocks.values()) == pytest.approx(expected, rel=1e-4)
    assert norms.weights["conv1"] == pytest.approx(float(bare.conv1.weight.grad.norm()) / 4, rel=1e-4)
    assert list(norms.weights)[1:3] == ["layer1.0.conv1", "layer1.0.conv2"]


def test_images_weigh_alike_and_so_do_batches():
    net = classifier()
    small, large, both = (gradient_norms(net, b) for b in ([batch(2)], [batch(6)], [batch(2), batch(6)]))
    for name, value in both.blocks.items():
        assert value == pytest.approx((2 * small.blocks[name] + 6 * large.blocks[name]) / 8)
    for name, value in both.weights.items():
        assert value == pytest.approx((small.weights[name] + large.weights[name]) / 2)


def test_nothing_of_the_net_changes():
    net = classifier().train()
    net.net.layer2.eval()
    modes = [module.training for module in net.modules()]
    state = {name: value.clone() for name, value in net.state_dict().items()}
    gradient_norms(net, [batch(3)])
    assert [module.training for module in net.modules()] == modes
    assert all(module.track_running_stats for module in net.modules() if isinstance(module, nn.BatchNorm2d))
    torch.testing.assert_close(dict(net.state_dict()), state, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not any(module._forward_hooks for module in net.modules())


def test_batch_statistics_normalise_by_the_batch_and_drop_nothing():
    layers = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.5)).eval()
    with batch_statistics(layers):
        out = layers(torch.tensor([1.0, 3.0]).view(2, 1, 1, 1))
    torch.testing.assert_close(out.flatten(), torch.tensor([-1.0, 1.0]), rtol=1e-4, atol=0)  # mean 2, deviation 1


def test_a_net_without_blocks_has_weights_only():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3)

        def forward(self, images):
            return self.conv(images).mean((2, 3))

    norms = gradient_norms(Classifier(Plain()), [batch(2)])
    assert (norms.blocks, list(norms.weights)) == ({}, ["conv"])
    assert [panel.title for panel in gradient_panels({"net": norms})] == ["gradient at the weights"]


def test_projections_are_left_out_of_the_picture():
    norms = GradientNorms({"layer1.0": 3.0}, {"conv1": 1.0, "layer1.0.downsample.0": 9.0, "layer1.0.conv1": 2.0})
    blocks, weights = gradient_panels({"net": norms})
    assert (blocks.lines[0].y, weights.lines[0].y, weights.log) == ([3.0], [1.0, 2.0], True)


def test_errors():
    with pytest.raises(InputError, match=r"(?s)gradient norms.*no batch of images"):
        gradient_norms(classifier(), [])
