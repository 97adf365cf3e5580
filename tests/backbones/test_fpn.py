from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torchvision.ops import FeaturePyramidNetwork

from resdet.backbones.fpn import FPN


def ones_fpn(levels):
    fpn = FPN([1] * levels, 1, strides=[4 * 2**i for i in range(levels)])
    for lateral, output in zip(fpn.lateral, fpn.output, strict=True):
        lateral.weight.data.fill_(1.0)
        output.weight.data.zero_()
        output.weight.data[..., 1, 1] = 1.0  # the identity
    return fpn


def test_by_hand():
    # Every convolution is the identity. C3 = [[10, 20]] spreads over the 2x3 C2 = 1 as columns (10, 10, 20), nearest
    # neighbour: columns 0, 1, 2 of 3 fall on floor(i * 2 / 3) = 0, 0, 1. P4 is every second cell of P3: 10.
    p2, p3, p4 = ones_fpn(2)([torch.ones(1, 1, 2, 3), torch.tensor([[[[10.0, 20.0]]]])])
    torch.testing.assert_close(p2, torch.tensor([[11.0, 11.0, 21.0]] * 2).view(1, 1, 2, 3))
    torch.testing.assert_close(p3, torch.tensor([[[[10.0, 20.0]]]]))
    torch.testing.assert_close(p4, torch.tensor([[[[10.0]]]]))


def test_declared_facts_hold_for_odd_sizes():
    fpn = FPN((3, 4, 5, 6), 8, strides=(4, 8, 16, 32))
    assert fpn.channels == (8,) * 5 and fpn.strides == (4, 8, 16, 32, 64)
    sides = (25, 13, 7, 4)
    levels = fpn([torch.randn(2, c, s, s + 1) for c, s in zip((3, 4, 5, 6), sides, strict=True)])
    assert [tuple(p.shape) for p in levels] == [(2, 8, s, t) for s, t in ((25, 26), (13, 14), (7, 8), (4, 5), (2, 3))]


def test_it_is_linear_in_its_maps():
    fpn = FPN((3, 4), 8, strides=(4, 8))  # biases are zero
    maps = [torch.randn(1, 3, 8, 8), torch.randn(1, 4, 4, 4)]
    torch.testing.assert_close(fpn([2 * m for m in maps]), [2 * p for p in fpn(maps)])


def test_initialisation():
    # kaiming_uniform with a = 1: bound sqrt(6 / (2 * fan_in)) = sqrt(3 / 512) for the lateral of 512 channels.
    torch.manual_seed(0)
    fpn = FPN((512,), 64, strides=(8,))
    torch.testing.assert_close(fpn.lateral[0].weight.max().item(), math.sqrt(3 / 512), rtol=1e-3, atol=0)
    torch.testing.assert_close(fpn.output[0].weight.max().item(), math.sqrt(3 / (64 * 9)), rtol=1e-3, atol=0)
    assert not fpn.lateral[0].bias.any() and not fpn.output[0].bias.any()


def test_batchnorm_follows_each_convolution():
    theirs = FeaturePyramidNetwork([3, 4], 8, norm_layer=nn.BatchNorm2d)
    ours = FPN((3, 4), 8, strides=(4, 8), batchnorm=True)
    names = {"inner_blocks": "lateral", "layer_blocks": "output"}
    ours.load_state_dict({f"{names[k.split('.')[0]]}.{k.split('.', 1)[1]}": v for k, v in theirs.state_dict().items()})
    maps = [torch.randn(2, 3, 8, 8), torch.randn(2, 4, 4, 4)]
    found, expected = ours(maps), theirs({"0": maps[0], "1": maps[1]})  # both learn: statistics of the batch
    torch.testing.assert_close(found[:2], list(expected.values()))
    torch.testing.assert_close(ours.output[1][1].running_var, theirs.layer_blocks[1][1].running_var)


def test_an_empty_batch_passes():
    assert [p.shape[0] for p in ones_fpn(2)([torch.ones(0, 1, 4, 4), torch.ones(0, 1, 2, 2)])] == [0, 0, 0]


def test_a_missing_map_is_an_error():
    with pytest.raises(ValueError, match="shorter"):
        ones_fpn(2)([torch.ones(1, 1, 4, 4)])
