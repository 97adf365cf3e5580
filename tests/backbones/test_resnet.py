from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from resdet.backbones.blocks import BasicBlock, PreBasicBlock
from resdet.backbones.resnet import (
    ResidualNet,
    ResNet,
    Stage,
    blocks_of,
    imagenet_stages,
    preresnet200,
    resnet18,
    resnet50,
    stages_of,
    zero_init_residual,
)
from resdet.errors import InputError


def tiny(num_classes=3):
    return ResNet(BasicBlock, (1, 2, 1, 1), widths=(4, 6, 8, 10), num_classes=num_classes)


def test_shapes_by_hand():
    # 70 -> 35 (stem) -> 18 (pool) -> 9 -> 5 -> 3: each stage rounds up.
    net, sizes = tiny(), []
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        stage.register_forward_hook(lambda _, __, out: sizes.append(tuple(out.shape)))
    assert net(torch.zeros(2, 3, 70, 70)).shape == (2, 3)
    assert sizes == [(2, 4, 18, 18), (2, 6, 9, 9), (2, 8, 5, 5), (2, 10, 3, 3)]
    assert net.channels == (4, 6, 8, 10) and net.strides == (4, 8, 16, 32)


def test_only_changes_of_size_project():
    net = tiny()
    stages = (net.layer1, net.layer2, net.layer3, net.layer4)
    identities = [[isinstance(block.downsample, nn.Identity) for block in stage] for stage in stages]
    assert identities == [[True], [False, True], [False], [False]]


def test_he_initialisation():
    # layer4.0.conv1 of ResNet-18, 256 -> 512: fan_out = 512 * 9, so the deviation is sqrt(2 / 4608) = 0.0208.
    torch.manual_seed(0)
    weight = resnet18().layer4[0].conv1.weight
    torch.testing.assert_close(weight.std().item(), math.sqrt(2 / (512 * 9)), rtol=0.01, atol=0)
    assert abs(weight.mean().item()) < 1e-4


def test_zero_init_starts_blocks_as_the_identity():
    net = tiny()
    zero_init_residual(net)
    x = torch.rand(2, 4, 5, 5)
    torch.testing.assert_close(net.layer1(x), x)
    with torch.device("meta"):
        bottlenecks = resnet50()
    zero_init_residual(bottlenecks)  # knows bn3


def test_an_empty_batch_passes():
    assert tiny().eval()(torch.zeros(0, 3, 64, 64)).shape == (0, 3)


def test_every_layer_learns():
    net = tiny()
    net(torch.randn(4, 3, 64, 64)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_depths_and_widths_must_pair():
    with pytest.raises(ValueError, match="shorter"):
        ResNet(BasicBlock, (1, 1, 1))


@pytest.mark.parametrize(("stem", "side", "convs"), [("imagenet", 4, 1), ("deep", 4, 3), ("cifar", 16, 1)])
def test_stems(stem, side, convs):
    net = ResidualNet(stem, [Stage(BasicBlock, 1, 8, 1), Stage(BasicBlock, 1, 8, 2)], num_classes=3)
    assert sum(isinstance(m, nn.Conv2d) for m in net.conv1.modules()) == convs
    assert net.strides == ((4, 8) if side == 4 else (1, 2))
    x = net.maxpool(net.relu(net.bn1(net.conv1(torch.zeros(2, 3, 16, 16)))))
    assert x.shape == (2, 8, side, side) and net(torch.zeros(2, 3, 16, 16)).shape == (2, 3)


def test_preactivation_ends_in_bn_and_relu():
    net = ResidualNet("cifar", [Stage(PreBasicBlock, 2, 4, 1)], num_classes=3, preactivation=True).eval()
    net.bn.bias.data.copy_(torch.tensor([-1e9, 5.0, 6.0, 7.0]))  # the first feature is never positive
    net.bn.weight.data.zero_()
    features = torch.tensor([0.0, 5.0, 6.0, 7.0])
    torch.testing.assert_close(net(torch.randn(1, 3, 8, 8))[0], net.fc(features))
    assert isinstance(net.layer1[0].bn1, nn.Identity) and isinstance(net.layer1[1].bn1, nn.BatchNorm2d)


def test_resnet200():
    with torch.device("meta"):
        net = preresnet200()
    assert [len(stage) for stage in stages_of(net)] == [3, 24, 36, 3]
    assert 3 * len(blocks_of(net)) + 2 == 200


def test_dropout_before_the_linear_layer():
    net = ResidualNet("cifar", [Stage(BasicBlock, 1, 4, 1)], num_classes=3, dropout=0.5)
    assert net.dropout.p == 0.5 and isinstance(resnet18().dropout, nn.Identity)
    nn.init.zeros_(net.fc.weight)
    torch.testing.assert_close(net(torch.randn(2, 3, 8, 8)), net.fc.bias.expand(2, 3))


def test_error_texts():
    with pytest.raises(InputError, match=r"stem\n  found:  'imagnet'\n  needed: did you mean 'imagenet'"):
        ResidualNet("imagnet", imagenet_stages(BasicBlock, (1, 1, 1, 1)), num_classes=3)
    net = ResidualNet("cifar", [Stage(PreBasicBlock, 2, 4, 1)], num_classes=3, preactivation=True)
    with pytest.raises(InputError, match=r"zero_last_bn\n  found:  a pre-activation net"):
        zero_init_residual(net)
    with pytest.raises(InputError, match=r"found:  Linear without layer1\n  needed: a residual net"):
        blocks_of(nn.Linear(1, 1))
