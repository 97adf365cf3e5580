"""The activation orders of the study: each block by hand, and nets of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from resdet.backbones.custom import residual_net
from resdet.backbones.orders import STUDY_ORDERS, OrderedBlock
from resdet.errors import InputError


def by_hand(block, x):
    """Fig. 4b, c and d of He et al. 2016 for two layers."""
    c1, c2, b1, b2 = block.conv1, block.conv2, block.bn1, block.bn2
    return {
        "bn-after-addition": lambda: F.relu(b2(c2(F.relu(b1(c1(x)))) + x)),
        "relu-before-addition": lambda: F.relu(b2(c2(F.relu(b1(c1(x)))))) + x,
        "relu-only-pre": lambda: b2(c2(F.relu(b1(c1(F.relu(x)))))) + x,
    }[block.order]()


@pytest.mark.parametrize("order", STUDY_ORDERS)
def test_a_block_by_hand(order):
    torch.manual_seed(0)
    block, x = OrderedBlock(4, 4, order=order).eval(), torch.randn(2, 4, 5, 5)
    for norm in (block.bn1, block.bn2):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    torch.testing.assert_close(block(x), by_hand(block, x))


@pytest.mark.parametrize("bottleneck", [False, True])
@pytest.mark.parametrize("order", STUDY_ORDERS)
def test_sizes_change_as_in_every_block(order, bottleneck):
    block = OrderedBlock(8, 4, stride=2, order=order, bottleneck=bottleneck)
    assert block(torch.randn(1, 8, 6, 6)).shape == (1, 16 if bottleneck else 4, 3, 3)


@pytest.mark.parametrize("order", STUDY_ORDERS)
def test_a_net_has_the_parameters_of_the_usual_one_and_learns(order):
    how = {"stem": "cifar", "stages": (("basic", 1, 4, 1), ("bottleneck", 1, 4, 2)), "shortcut": "B", "num_classes": 3}
    usual, net = residual_net(**how), residual_net(**how, order=order)
    assert {name: value.shape for name, value in net.state_dict().items()} == {
        name: value.shape for name, value in usual.state_dict().items()
    }
    net(torch.randn(2, 3, 8, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize("shortcut", ["exclusive-gate", "shortcut-gate", "highway"])
def test_the_bias_of_a_gate_is_a_number(shortcut):
    how = {"stem": "cifar", "stages": (("basic", 2, 4, 1),), "shortcut": shortcut, "num_classes": 3}
    biases = [m.bias for m in residual_net(**how, gate_bias=-1.5).modules() if getattr(m, "bias", None) is not None]
    gates = [bias for bias in biases if bias.shape == (4,) and bias[0] == -1.5]
    assert len(gates) == 2
    with pytest.raises(
        InputError, match=r"gate_bias\n  found:  -1.0 with shortcut='A'\n  needed: one of exclusive-gate"
    ):
        residual_net(**{**how, "shortcut": "A"}, gate_bias=-1.0)
