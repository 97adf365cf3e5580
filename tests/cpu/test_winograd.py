from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from resdet.cpu import winograd
from resdet.cpu.winograd import WinogradConv, use_winograd


def test_one_row_by_hand():
    # Input 1 2 3 4 in one row, filter (1, 10, 100) in the middle row: out[j] = x[j - 1] + 10 x[j] + 100 x[j + 1].
    conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    conv.weight.data.zero_()
    conv.weight.data[0, 0, 1] = torch.tensor([1.0, 10.0, 100.0])
    answer = WinogradConv(conv)(torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]]))
    assert_close(answer.flatten(), torch.tensor([210.0, 321.0, 432.0, 43.0]), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("hw", [(1, 1), (4, 4), (7, 7), (9, 30), (33, 5)])
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("chunk", [1, 4, 256])
def test_it_is_the_convolution(bias, hw, images, chunk, monkeypatch):
    monkeypatch.setattr(winograd, "CHUNK", chunk)
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 5, 3, padding=1, bias=bias).double()
    x = torch.randn(images, 8, *hw, dtype=torch.float64)
    answer = WinogradConv(conv)(x)
    assert answer.is_contiguous(memory_format=torch.channels_last)
    assert_close(answer, conv(x), rtol=1e-12, atol=1e-12)


def test_rounding():
    torch.manual_seed(0)
    conv = nn.Conv2d(256, 256, 3, padding=1)
    x = torch.randn(1, 256, 20, 30).relu()
    wanted = conv(x)
    assert (WinogradConv(conv)(x) - wanted).abs().max() < 5e-5 * wanted.abs().max()


def test_no_images():
    conv = nn.Conv2d(4, 4, 3, padding=1)
    assert WinogradConv(conv)(torch.empty(0, 4, 7, 7)).shape == (0, 4, 7, 7)


def test_what_is_replaced():
    wide = {"in_channels": 256, "out_channels": 256, "kernel_size": 3, "padding": 1}
    net = nn.ModuleDict(
        {
            "wide": nn.Conv2d(**wide),
            "inner": nn.Sequential(nn.Conv2d(**wide, bias=False)),
            "narrow": nn.Conv2d(64, 256, 3, padding=1),
            "strided": nn.Conv2d(**wide, stride=2),
            "grouped": nn.Conv2d(**wide, groups=2),
            "dilated": nn.Conv2d(256, 256, 3, padding=2, dilation=2),
            "pointwise": nn.Conv2d(256, 256, 1),
            "circular": nn.Conv2d(**wide, padding_mode="circular"),
        }
    )
    replaced = {name for name, module in use_winograd(net).named_modules() if isinstance(module, WinogradConv)}
    assert replaced == {"wide", "inner.0"}


def test_autocast_leaves_it_exact():
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 64, 3, padding=1)
    x = torch.randn(1, 64, 12, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answer = WinogradConv(conv)(x)
        assert WinogradConv(conv)(x.bfloat16()).dtype == torch.float32
    assert_close(answer, conv(x), rtol=1e-3, atol=1e-4)
