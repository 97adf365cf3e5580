from __future__ import annotations

import pytest
import torch
from torch import nn

from resdet.backbones.blocks import BasicBlock, Bottleneck, projection
from resdet.errors import InputError


def test_projection_by_hand():
    # 1x1 weights (2, 1) on the one channel, every second pixel: x = [[1, 2], [3, 4]] -> pixel 1 -> (2, 1).
    shortcut = projection(1, 2, stride=2).eval()
    shortcut[0].weight.data = torch.tensor([2.0, 1.0]).view(2, 1, 1, 1)
    shortcut[1].eps = 0.0
    out = shortcut(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))
    torch.testing.assert_close(out, torch.tensor([[[[2.0]], [[1.0]]]]))


def test_projection_is_the_identity_unless_the_size_changes():
    assert isinstance(projection(8, 8, stride=1), nn.Identity)
    assert isinstance(projection(8, 8, stride=2), nn.Sequential)
    assert isinstance(projection(8, 16, stride=1), nn.Sequential)


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
