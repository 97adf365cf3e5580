from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from resdet.backbones.blocks import Bottleneck, PreBasicBlock
from resdet.backbones.frozen import FrozenBatchNorm, freeze_batchnorm
from resdet.backbones.registry import BACKBONES
from resdet.backbones.trunk import Trunk
from resdet.cpu.folding import conv_norm, conv_relu, fold_batchnorm


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
    "name", ["resnet18-half", "resnet50", "resnet50-1x1", "resnext50_32x4d", "timm/resnet50d", "torchvision/resnet18"]
)
def test_maps_stay_the_same(name):
    trunk = Trunk(freeze_batchnorm(shaken(BACKBONES.build(name, num_classes=3)))).eval()
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = trunk(image)
        after = fold_batchnorm(trunk)(image)
    left = [name for name, module in trunk.named_modules() if isinstance(module, FrozenBatchNorm)]
    assert left == (["bn1"] if name == "timm/resnet50d" else [])  # its stem ends in a norm of its own
    ours = [block.folded for block in trunk.modules() if hasattr(block, "folded")]
    assert all(ours) and (len(ours) > 0) is ("/" not in name)
    for a, b in zip(after, before, strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def test_what_has_learnt_is_folded_too():
    net = shaken(BACKBONES.build("resnet18-half", num_classes=3))
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = net(image)
        assert_close(fold_batchnorm(net)(image), before, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    assert all(block.folded for block in net.modules() if hasattr(block, "folded"))


@pytest.mark.parametrize("how", [{"affine": False}, {"track_running_stats": False}])
def test_what_is_no_constant_affine_map_stays(how):
    odd = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3, **how))
    assert isinstance(fold_batchnorm(odd)[1], nn.BatchNorm2d)
    lonely = nn.Sequential(nn.ReLU(), FrozenBatchNorm(3))
    assert isinstance(fold_batchnorm(lonely)[1], FrozenBatchNorm)


def layer(kind: str, generator: torch.Generator) -> tuple[nn.Conv2d, nn.Module | None]:
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=kind != "frozen")
    norm = {"none": None, "identity": nn.Identity(), "frozen": FrozenBatchNorm(6), "learning": nn.BatchNorm2d(6)}[kind]
    if norm is not None:
        for name, tensor in norm.named_buffers():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5, generator=generator) if name != "running_mean" else tensor.normal_(
                    generator=generator
                )
        norm.eval()
    return conv, norm


@pytest.mark.parametrize("kind", ["none", "identity", "frozen", "learning"])
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("learns", [False, True])
def test_one_pass_is_many(kind, adds, learns):
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    conv, norm = layer(kind, generator)
    for part in (conv, *([norm] if norm else ())):
        part.requires_grad_(learns)
    x = torch.randn(2, 4, 9, 7, generator=generator)
    add = torch.randn(2, 6, 5, 4, generator=generator) if adds else None
    plain = conv(x) if norm is None else norm(conv(x))
    answer = conv_relu(x, conv, norm, add=add)
    assert_close(answer, (plain + add if adds else plain).relu())
    assert answer.requires_grad is learns
    if norm is not None:
        assert_close(conv_norm(x, conv, norm), plain)


def test_gradients_are_those_of_the_layers():
    torch.manual_seed(0)
    conv, norm = layer("frozen", torch.Generator().manual_seed(0))
    x = torch.randn(2, 4, 9, 7, requires_grad=True)
    wanted = torch.autograd.grad(norm(conv(x)).relu().square().sum(), (x, conv.weight))
    found = torch.autograd.grad(conv_relu(x, conv, norm).square().sum(), (x, conv.weight))
    assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_what_onednn_does_not_take():
    conv = nn.Conv2d(2, 3, 3, padding=1).requires_grad_(False)
    x = torch.randn(1, 2, 5, 5)
    assert_close(conv_relu(x, conv, add=torch.zeros(())), conv(x).relu())  # the plain net's absent shortcut
    assert conv_relu(x.new_zeros(0, 2, 5, 5), conv).shape == (0, 3, 5, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert conv_relu(x, conv).dtype == torch.bfloat16
    circular = nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular").requires_grad_(False)
    assert_close(conv_relu(x, circular), circular(x).relu())


def test_circular_padding_is_not_folded():
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(2, 6, 3, padding=1, padding_mode="circular"), layer("frozen", torch.Generator())[1]
    x = torch.randn(1, 2, 5, 5)
    assert_close(conv_norm(x, conv, norm), norm(conv(x)))
    same = nn.Conv2d(2, 6, 3, padding="same").requires_grad_(False)
    assert_close(conv_relu(x, same), same(x).relu())


def test_a_norm_before_its_convolution_stays():
    torch.manual_seed(0)
    block = freeze_batchnorm(shaken(nn.Sequential(PreBasicBlock(4, 4)))).eval()
    x = torch.randn(2, 4, 8, 8)
    before = block(x)
    assert_close(fold_batchnorm(block)(x), before)


def test_a_folded_block_takes_one_pass_for_each_convolution():
    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.append(str(function))
            return function(*args, **(kwargs or {}))

    names: list[str] = []
    block = fold_batchnorm(freeze_batchnorm(shaken(nn.Sequential(Bottleneck(16, 4)))))
    x = torch.randn(1, 16, 8, 8)
    with torch.no_grad(), Seen():
        block(x)
    assert names == ["mkldnn._convolution_pointwise.default"] * 2 + ["mkldnn._convolution_pointwise.binary"]


@pytest.mark.parametrize("side", [1, 2])
@torch.no_grad()
def test_maps_of_one_cell(side):
    conv, x, add = nn.Conv2d(8, 8, 3, padding=1), torch.randn(1, 8, side, side), torch.randn(1, 8, side, side)
    conv = conv.to(memory_format=torch.channels_last)
    wanted = torch.relu(conv(x) + add)
    torch.testing.assert_close(conv_relu(x, conv, add=add), wanted, rtol=1e-4, atol=1e-5)
