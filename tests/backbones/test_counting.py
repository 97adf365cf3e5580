from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from resdet.backbones.counting import Counts, count
from resdet.backbones.registry import BACKBONES
from resdet.backbones.stochastic_depth import RandomResidual


def test_by_hand():
    # Conv 3 -> 4, 3x3, stride 2, no bias: 4 * 27 = 108 weights; 8x10 pixels give 4x5 places: 2160 multiply-adds.
    # Grouped conv 4 -> 6 by 2, 1x1, bias: 6 * 2 + 6 = 18 numbers, 20 places * 12 = 240. BN: 12 numbers, no
    # multiply-adds counted. Linear 6 -> 2: 14 numbers, 12 multiply-adds.
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False),
        nn.Conv2d(4, 6, 1, groups=2),
        nn.BatchNorm2d(6),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 2),
    )
    assert count(net, (8, 10)) == Counts(108 + 18 + 12 + 14, 2160 + 240 + 12)


def test_against_torch():
    for name in ("resnet18", "timm/seresnet50", "cifar-preresnet20"):
        with torch.device("meta"):
            net = BACKBONES.build(name).eval()
            images = torch.empty(1, 3, 64, 96)
        with FlopCounterMode(display=False) as counter:
            net(images)
        assert count(net, (64, 96)).multiply_adds == counter.get_total_flops() // 2


def test_the_net_is_left_as_it_is():
    net = BACKBONES.build("cifar-resnet8", survival=0.5).train()
    net.layer1.eval()
    modes, state = [m.training for m in net.modules()], {k: v.clone() for k, v in net.state_dict().items()}
    random = torch.get_rng_state()
    whole = count(net, (32, 32))
    assert [m.training for m in net.modules()] == modes and not any(m._forward_hooks for m in net.modules())
    torch.testing.assert_close(dict(net.state_dict()), state)
    assert torch.equal(torch.get_rng_state(), random)  # no block is dropped by chance
    assert any(isinstance(m, RandomResidual) for m in net.modules())
    assert whole == count(BACKBONES.build("cifar-resnet8", checkpoint=True), (32, 32))
