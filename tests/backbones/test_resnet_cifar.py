from __future__ import annotations

import pytest
import torch
from torch import nn

from resdet.backbones.blocks import BasicBlock, PreBasicBlock, PreBottleneck
from resdet.backbones.counting import count
from resdet.backbones.registry import BACKBONES
from resdet.backbones.resnet import blocks_of, stages_of
from resdet.backbones.resnet_cifar import FACTS, CifarNet, blocks_per_stage, cifar_preresnet, cifar_resnet, parse_name
from resdet.backbones.shortcuts import Absent, ZeroPadding
from resdet.backbones.trunk import Trunk
from resdet.errors import InputError

GOLDEN = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962}
MILLIONS = {20: 0.27, 32: 0.46, 44: 0.66, 56: 0.85, 110: 1.7, 1202: 19.4}  # the paper, Table 6


def test_parameters_by_hand():
    # n = 1, shortcut A. Stem 3 * 16 * 9 = 432; blocks 16 * 16 * 9 * 2 = 4608, 16 * 32 * 9 + 32 * 32 * 9 = 13824,
    # 32 * 64 * 9 + 64 * 64 * 9 = 55296; BN 2 * (16 + 2 * (16 + 32 + 64)) = 480; linear 64 * 10 + 10 = 650.
    # Multiply-adds: (432 + 4608) * 32^2 + 13824 * 16^2 + 55296 * 8^2 + 640.
    counts = count(cifar_resnet(8), (32, 32))
    assert counts.parameters == 432 + 4608 + 13824 + 55296 + 480 + 650
    assert counts.multiply_adds == 5040 * 1024 + 13824 * 256 + 55296 * 64 + 640


@pytest.mark.parametrize(("depth", "parameters"), GOLDEN.items())
def test_golden_parameter_counts(depth, parameters):
    for name in (f"cifar-resnet{depth}", f"cifar-plain{depth}"):
        assert FACTS[name][0] == parameters


@pytest.mark.parametrize("depth", [*GOLDEN, 1202])
def test_what_projections_add(depth):
    # B: 16 -> 32 channels at 16x16, 32 -> 64 at 8x8, and BN. C besides: in all n blocks of the first stage, and in the
    # n - 1 others of the second and third.
    n = (depth - 2) // 6
    a, b, c = (FACTS[f"cifar-resnet{depth}{kind}"] for kind in ("", "-B", "-C"))
    assert b[0] - a[0] == 16 * 32 + 32 * 64 + 2 * (32 + 64)
    assert b[1] - a[1] == 16 * 32 * 16**2 + 32 * 64 * 8**2
    assert c[0] - b[0] == n * (16**2 + 2 * 16) + (n - 1) * (32**2 + 2 * 32 + 64**2 + 2 * 64)
    assert c[1] - b[1] == n * 16**2 * 32**2 + (n - 1) * (32**2 * 16**2 + 64**2 * 8**2)


def test_the_paper_table():
    for depth, millions in MILLIONS.items():
        assert FACTS[f"cifar-resnet{depth}"][0] / 1e6 == pytest.approx(millions, rel=0.02)
    # He et al. 2016, Table 2: 110 and 164 layers have 1.7 million parameters, 1001 have 10.2 (10.3 by our count).
    assert [round(FACTS[f"cifar-preresnet{depth}"][0] / 1e6, 1) for depth in (110, 164, 1001)] == [1.7, 1.7, 10.3]


@pytest.mark.parametrize(
    ("name", "net", "block", "blocks", "channels"),
    [
        ("cifar-resnet20", CifarNet("resnet", 20, "A"), BasicBlock, 9, (16, 32, 64)),
        ("cifar-resnet26-C", CifarNet("resnet", 26, "C"), BasicBlock, 12, (16, 32, 64)),
        ("cifar-plain32", CifarNet("plain", 32, "none"), BasicBlock, 15, (16, 32, 64)),
        ("cifar-preresnet110", CifarNet("preresnet", 110, "B"), PreBasicBlock, 54, (16, 32, 64)),
        ("cifar-preresnet164", CifarNet("preresnet", 164, "B"), PreBottleneck, 54, (64, 128, 256)),
    ],
)
def test_names(name, net, block, blocks, channels):
    assert parse_name(name) == net == BACKBONES[name].builder
    with torch.device("meta"):
        built = BACKBONES.build(name, num_classes=7)
    assert built.fc.out_features == 7 and len(blocks_of(built)) == blocks and len(stages_of(built)) == 3
    assert {type(b) for b in blocks_of(built)} == {block}
    assert built.channels == net.channels == BACKBONES[name].channels == channels
    assert built.strides == BACKBONES[name].strides == (1, 2, 4)
    layers = [m for key, m in built.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and "downsample" not in key]
    assert len(layers) == net.depth


@pytest.mark.parametrize("name", ["cifar-resnet", "cifar-resnet20-D", "cifar-plain20-A", "resnet20", "xcifar-resnet20"])
def test_other_names_are_not_of_this_kind(name):
    assert parse_name(name) is None


def test_shortcuts():
    paths = {kind: [type(b.downsample) for b in blocks_of(cifar_resnet(14, shortcut=kind))] for kind in ("A", "none")}
    assert paths["A"] == [nn.Identity, nn.Identity, ZeroPadding, nn.Identity, ZeroPadding, nn.Identity]
    assert paths["none"] == [Absent] * 6


@pytest.mark.parametrize("net", [cifar_resnet(8), cifar_preresnet(8), cifar_resnet(8, shortcut="none")])
def test_every_layer_learns_and_empty_batches_pass(net):
    net(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    assert net.eval()(torch.zeros(0, 3, 32, 32)).shape == (0, 10)


def test_blocks_per_stage():
    assert [blocks_per_stage(6 * n + 2, 6, where="x") for n in (1, 3, 200)] == [1, 3, 200]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cifar-resnet21", r"depth 21, n = 3.17\n  needed: 6n\+2 (.*) nearest: 20 \(n = 3\) or 26 \(n = 4\)"),
        ("cifar-plain2", r"depth 2, n = 0.00\n  needed: 6n\+2 (.*) nearest: 8 \(n = 1\)"),
        ("cifar-resnet0", r"depth 0, n = -0.33\n  needed: 6n\+2 (.*) nearest: 8 \(n = 1\)"),
        ("cifar-preresnet1000", r"n = 110.89\n  needed: 9n\+2 (.*) nearest: 992 \(n = 110\) or 1001 \(n = 111\)"),
    ],
)
def test_depths_without_a_whole_n(name, text):
    with pytest.raises(InputError, match=f"backbone name '{name}'\n  found:  (.*)" + text):
        BACKBONES.build(name)


def test_error_texts():
    with pytest.raises(InputError, match=r"a CIFAR resnet of 21 layers\n  found:  depth 21"):
        cifar_resnet(21)
    with pytest.raises(InputError, match=r"did you mean 'cifar-resnet20"):
        BACKBONES.build("cifar-resnet20-D")
    with pytest.raises(
        InputError, match=r"ResidualNet with the CIFAR stem, for 32x32 images\n  needed: a net with the"
    ):
        Trunk(cifar_resnet(8))
