from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from resdet.backbones.folding import fold_batchnorm
from resdet.backbones.frozen import FrozenBatchNorm, freeze_batchnorm
from resdet.backbones.registry import BACKBONES
from resdet.backbones.trunk import Trunk


def shaken(net: nn.Module) -> nn.Module:
    """With BN statistics of a net that was trained."""
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(std=0.2)
    return net.eval()


def test_by_hand():
    # conv: 2 x + 1; norm: (x - 3) / sqrt(4 + 5) * 6 + 7. Together: (2 x - 2) * 2 + 7 = 4 x + 3.
    conv, norm = nn.Conv2d(1, 1, 1), FrozenBatchNorm(1, eps=5.0)
    conv.weight.data.fill_(2.0), conv.bias.data.fill_(1.0)
    norm.running_mean.fill_(3.0), norm.running_var.fill_(4.0), norm.weight.fill_(6.0), norm.bias.fill_(7.0)
    folded = fold_batchnorm(nn.Sequential(conv, norm))
    assert folded[0].weight.item() == pytest.approx(4.0) and folded[0].bias.item() == pytest.approx(3.0)
    assert isinstance(folded[1], nn.Identity)


@pytest.mark.parametrize(
    "name", ["resnet18-half", "resnet50", "resnet50-1x1", "timm/resnet50d", "torchvision/resnet18"]
)
def test_maps_stay_the_same(name):
    trunk = Trunk(freeze_batchnorm(shaken(BACKBONES.build(name, num_classes=3)))).eval()
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = trunk(image)
        after = fold_batchnorm(trunk)(image)
    left = [name for name, module in trunk.named_modules() if isinstance(module, FrozenBatchNorm)]
    assert left == (["bn1"] if name == "timm/resnet50d" else [])  # its stem ends in a norm of its own
    for a, b in zip(after, before, strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def test_what_learns_is_left_alone():
    net = shaken(BACKBONES.build("resnet18-half", num_classes=3))
    keys = list(net.state_dict())
    assert list(fold_batchnorm(net).state_dict()) == keys
    lonely = nn.Sequential(nn.ReLU(), FrozenBatchNorm(3))
    assert isinstance(fold_batchnorm(lonely)[1], FrozenBatchNorm)
