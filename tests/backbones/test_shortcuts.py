from __future__ import annotations

import pytest
import torch
from torch import nn

from resdet.backbones.blocks import BasicBlock, Bottleneck, PreBasicBlock, PreBottleneck
from resdet.backbones.shortcuts import SHORTCUTS, Absent, GatedSum, ZeroPadding, join, shortcut
from resdet.errors import InputError

BLOCKS = (BasicBlock, Bottleneck, PreBasicBlock, PreBottleneck)


def test_zero_padding_by_hand():
    # One channel to four at stride 2: of [[1, 2, 3], [4, 5, 6], [7, 8, 9]] the pixels [[1, 3], [7, 9]] stay. Three new
    # channels: 3 // 2 = 1 before, 2 after.
    x = torch.arange(1.0, 10.0).view(1, 1, 3, 3)
    out = ZeroPadding(1, 4, stride=2)(x)
    assert out.shape == (1, 4, 2, 2)
    torch.testing.assert_close(out[0, 1], torch.tensor([[1.0, 3.0], [7.0, 9.0]]))
    assert not out[0, [0, 2, 3]].any()


def test_projection_by_hand():
    # 1x1 weights (2, 1) on the one channel, every second pixel: x = [[1, 2], [3, 4]] -> pixel 1 -> (2, 1).
    path = shortcut("B", 1, 2, stride=2).eval()
    path[0].weight.data = torch.tensor([2.0, 1.0]).view(2, 1, 1, 1)
    path[1].eps = 0.0
    out = path(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))
    torch.testing.assert_close(out, torch.tensor([[[[2.0]], [[1.0]]]]))


@pytest.mark.parametrize(
    ("kind", "same", "changed"),
    [
        ("A", nn.Identity, ZeroPadding),
        ("B", nn.Identity, nn.Sequential),
        ("C", nn.Sequential, nn.Sequential),
        ("none", Absent, Absent),
        ("highway", nn.Identity, ZeroPadding),
    ],
)
def test_where_the_size_changes(kind, same, changed):
    assert isinstance(shortcut(kind, 8, 8, stride=1), same)
    assert isinstance(shortcut(kind, 8, 8, stride=2), changed)
    assert isinstance(shortcut(kind, 8, 16, stride=1), changed)


@pytest.mark.parametrize(("kind", "count"), [("A", 0), ("B", 0), ("C", 8 * 8 + 16), ("none", 0), ("dropout", 0)])
def test_parameters_of_a_block_that_keeps_its_size(kind, count):
    # Projection: 8 x 8 weights, BN's 8 scales and 8 shifts.
    residual = 2 * (8 * 8 * 9 + 16)
    assert sum(p.numel() for p in BasicBlock(8, 8, shortcut=kind).parameters()) == residual + count


def test_variants_by_hand():
    # x = 2, F(x) = 10. g = sigmoid(w x + b), w = 0: b = 0 -> 1/2, b = ln 3 -> 3/4.
    x, residual = torch.full((1, 1, 3, 3), 2.0), lambda x: 5 * x
    sums = {"scaling": 0.5 * 10 + 0.5 * 2, "shortcut-scaling": 10 + 0.5 * 2, "shortcut-gate": 10 + 0.25 * 2}
    sums |= {"exclusive-gate": 0.75 * 10 + 0.25 * 2, "highway": 0.75 * 10 + 0.25 * 2, "A": 12, "none": 10}
    for kind, expected in sums.items():
        path, add = shortcut(kind, 1, 1, stride=1), join(kind, 1, 1, stride=1)
        for module in (*path.modules(), *(add.modules() if add else ())):
            if isinstance(module, nn.Conv2d):
                nn.init.zeros_(module.weight)
                nn.init.constant_(module.bias, torch.tensor(3.0).log().item())
        out = residual(x) + path(x) if add is None else add(x, residual, path(x))
        torch.testing.assert_close(out, torch.full_like(x, expected), msg=kind)


def test_dropout_drops_in_training_only():
    torch.manual_seed(0)
    path, x = shortcut("dropout", 4, 4, stride=1), torch.ones(2, 4, 32, 32)
    assert set(path(x).unique().tolist()) == {0.0, 2.0}  # kept values are doubled
    torch.testing.assert_close(path(x).mean().item(), 1.0, rtol=0.05, atol=0)
    torch.testing.assert_close(path.eval()(x), x)


def test_gates_start_nearly_closed_and_have_their_kernels():
    torch.manual_seed(0)
    exclusive, highway = (join(kind, 4, 4, stride=1) for kind in ("exclusive-gate", "highway"))
    assert isinstance(highway, GatedSum)
    assert [gate.gate[0].kernel_size for gate in (exclusive, highway)] == [(1, 1), (3, 3)]
    # sigmoid(-6) = 0.0025, so (1 - g) 1 + g 100 = 1.245 for zero weights
    nn.init.zeros_(exclusive.gate[0].weight)
    out = exclusive(torch.zeros(1, 4, 2, 2), lambda x: x + 100, torch.ones(1, 4, 2, 2))
    torch.testing.assert_close(out, torch.full_like(out, 1 + 99 * 0.0024726), rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", SHORTCUTS)
@pytest.mark.parametrize("block", BLOCKS)
def test_every_kind_in_every_block(block, kind):
    torch.manual_seed(0)
    for in_channels, stride in ((8, 1), (4, 2)):
        net = block(in_channels, 8 // block.expansion, stride=stride, shortcut=kind)
        out = net(torch.randn(2, in_channels, 5, 5))
        assert out.shape == (2, 8, 5, 5) if stride == 1 else out.shape == (2, 8, 3, 3)
        out.square().sum().backward()
        assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_joined_blocks_are_rectified(block):
    torch.manual_seed(0)
    net = block(8, 8 // block.expansion, shortcut="scaling").eval()
    x = torch.randn(1, 8, 4, 4)
    torch.testing.assert_close(net(x), (0.5 * net.residual(x) + 0.5 * x).relu())


def test_error_texts():
    with pytest.raises(InputError, match=r"shortcut\n  found:  'highways'\n  needed: did you mean 'highway'"):
        BasicBlock(8, 8, shortcut="highways")
    with pytest.raises(InputError, match=r"shortcut\n  found:  'D'\n  needed: one of: A, B, C"):
        Bottleneck(8, 8, shortcut="D")
    with pytest.raises(InputError, match=r"found:  16 channels in, 8 out\n  needed: at least 16 channels"):
        BasicBlock(16, 8, shortcut="A")
