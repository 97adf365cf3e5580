from __future__ import annotations

import pytest
import torch
from torch import nn

from resdet.backbones.blocks import BasicBlock, Bottleneck, PreBasicBlock, PreBottleneck
from resdet.errors import InputError


@pytest.mark.parametrize("block", [BasicBlock(4, 4), Bottleneck(4, 1)])
def test_a_zero_residual_leaves_the_rectified_input(block):
    # The last BN's scale and shift are zero, so F(x) = 0 and the block is relu(x): (-1, 0, 2) -> (0, 0, 2).
    last = block.bn3 if isinstance(block, Bottleneck) else block.bn2
    nn.init.zeros_(last.weight)
    x = torch.tensor([-1.0, 0.0, 2.0]).repeat(2, 4, 3, 1)
    torch.testing.assert_close(block(x), torch.tensor([0.0, 0.0, 2.0]).repeat(2, 4, 3, 1))


@pytest.mark.parametrize("block", [BasicBlock(4, 8, stride=2).eval(), Bottleneck(4, 2, stride=2).eval()])
def test_output_is_the_rectified_sum(block):
    torch.manual_seed(0)
    x = torch.randn(1, 4, 8, 8)
    out = block(x)
    assert out.shape == (1, 8, 4, 4) and out.min() == 0
    torch.testing.assert_close(out, (block.residual(x) + block.downsample(x)).relu())


@pytest.mark.parametrize(("stride_on", "strides"), [("3x3", (1, 2)), ("1x1", (2, 1))])
def test_which_convolution_strides(stride_on, strides):
    block = Bottleneck(4, 2, stride=2, stride_on=stride_on)
    assert (block.conv1.stride[0], block.conv2.stride[0]) == strides
    assert block(torch.zeros(2, 4, 8, 8)).shape == (2, 8, 4, 4)


def test_unknown_stride_on():
    with pytest.raises(InputError, match=r"stride_on(.|\n)*found:  'caffe'(.|\n)*'3x3' or '1x1'"):
        Bottleneck(4, 2, stride_on="caffe")


def identities(*layers):
    """BN that changes nothing in eval mode, convolutions that pass every channel on."""
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = 0.0
        elif isinstance(layer, nn.Conv2d):
            nn.init.dirac_(layer.weight)


@pytest.mark.parametrize("block", [PreBasicBlock(4, 4), PreBottleneck(4, 1)])
def test_preactivation_by_hand(block):
    # All layers pass what they get, so F(x) = relu(x), of the first channel only where the width is 1; nothing follows
    # the addition: x = -1 -> 0 + -1; x = 2 -> 2 + 2.
    identities(*block.eval().modules())
    x = torch.tensor([-1.0, 2.0]).repeat(1, 4, 2, 1)
    torch.testing.assert_close(block(x)[:, 0], torch.tensor([[[-1.0, 4.0]] * 2]))


@pytest.mark.parametrize("block", [PreBasicBlock, PreBottleneck])
def test_where_preactivation_is_shared(block):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 6)
    same, wider = block(4, 4 // block.expansion).eval(), block(4, 8 // block.expansion, stride=2).eval()
    activated = [net.bn1(x).relu() for net in (same, wider)]
    torch.testing.assert_close(same(x), same.residual(activated[0]) + x)
    torch.testing.assert_close(wider(x), wider.residual(activated[1]) + wider.downsample(activated[1]))
    assert [type(layer) for layer in wider.downsample] == [nn.Conv2d]  # no BN


@pytest.mark.parametrize("block", [PreBasicBlock, PreBottleneck])
def test_the_first_preactivation_block_takes_the_stem_as_it_is(block):
    net = block(4, 4 // block.expansion, first=True).eval()
    x = torch.rand(2, 4, 6, 6)
    torch.testing.assert_close(net(x), net.residual(x) + x)
    assert not any(key.startswith("bn1") for key in net.state_dict())
