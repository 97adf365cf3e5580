from __future__ import annotations

import pytest
import torch
from torch import nn

from resdet.backbones.blocks import BasicBlock
from resdet.backbones.registry import BACKBONES
from resdet.backbones.resnet import blocks_of
from resdet.backbones.resnet_cifar import cifar_preresnet, cifar_resnet
from resdet.backbones.stochastic_depth import RandomResidual, stochastic_depth
from resdet.errors import InputError


def test_linear_decay_by_hand():
    # Three blocks, p_L = 0.4: 1 - 1/3 * 0.6 = 0.8, 1 - 2/3 * 0.6 = 0.6, 0.4.
    net = stochastic_depth(cifar_resnet(8), 0.4)
    torch.testing.assert_close([block.join.survival for block in blocks_of(net)], [0.8, 0.6, 0.4])


def test_at_test_the_residual_is_scaled():
    # F(x) = 10, x = 2, p = 0.3: 0.3 * 10 + 2 = 5, whatever is drawn.
    join = RandomResidual(0.3).eval()
    torch.testing.assert_close(join(torch.tensor(2.0), lambda x: 5 * x, torch.tensor(2.0)), torch.tensor(5.0))


def test_in_training_it_is_whole_or_not_computed():
    torch.manual_seed(0)
    join, calls = RandomResidual(0.3), []
    results = [join(torch.tensor(2.0), lambda x: calls.append(x) or 5 * x, torch.tensor(2.0)) for _ in range(2000)]
    assert set(torch.stack(results).tolist()) == {2.0, 12.0}
    # 2000 draws of 0.3: 600, standard deviation sqrt(2000 * 0.3 * 0.7) = 20.5
    assert len(calls) == sum(r == 12 for r in results) and abs(len(calls) - 600) < 82


@pytest.mark.parametrize("build", [cifar_resnet, cifar_preresnet])
def test_a_dropped_block_is_its_shortcut(build, monkeypatch):
    net = stochastic_depth(build(8), 0.5)
    monkeypatch.setattr(torch, "rand", lambda *_: torch.tensor(0.7))  # survive: 5/6; not 2/3 and 1/2
    x = torch.randn(2, 3, 32, 32)
    net(x).square().sum().backward()
    layers = (net.layer1, net.layer2, net.layer3)
    assert [stage[0].conv1.weight.grad is not None for stage in layers] == [True, False, False]
    assert [stage[0].bn2.num_batches_tracked.item() for stage in layers] == [1, 0, 0]
    x = torch.ones(2, 16, 8, 8)
    shortcut = net.layer2[0].downsample(x if build is cifar_resnet else net.layer2[0].bn1(x).relu())
    torch.testing.assert_close(net.layer2(x), shortcut)


def test_input_of_a_dropped_block_is_left_alone(monkeypatch):
    block = BasicBlock(4, 4)
    block.join = RandomResidual(0.5)
    monkeypatch.setattr(torch, "rand", lambda *_: torch.tensor(0.9))
    x = torch.randn(1, 4, 2, 2)
    before = x.clone()
    torch.testing.assert_close(block(x), before.relu())
    torch.testing.assert_close(x, before)


def test_certain_survival_is_the_net_itself():
    net = cifar_resnet(8)
    keys = list(net.state_dict())
    assert stochastic_depth(net, 1.0) is net and blocks_of(net)[0].join is None
    assert list(stochastic_depth(net, 0.5).state_dict()) == keys


def test_through_the_registry():
    net = BACKBONES.build("cifar-resnet8", survival=0.5)
    assert blocks_of(net)[-1].join.survival == 0.5


def test_error_texts():
    for survival in (0.0, 1.1, float("nan")):
        with pytest.raises(InputError, match=r"stochastic depth\n  found:  survival = (.*)\n  needed: a prob"):
            stochastic_depth(cifar_resnet(8), survival)
    for shortcut in ("none", "highway"):
        with pytest.raises(InputError, match=r"block 1 of ResidualNet has no plain sum(.*)\n  needed: .* A, B or C"):
            stochastic_depth(cifar_resnet(8, shortcut=shortcut), 0.5)
    with pytest.raises(InputError, match="block 1 of ResNet has no plain sum"):
        BACKBONES.build("torchvision/resnet18", survival=0.5)
    with pytest.raises(InputError, match="Linear without layer1"):
        stochastic_depth(nn.Linear(1, 1), 0.5)
