"""The weight gradient by nine products is the library's, and it steps aside where it does not fit."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resdet.cpu import weight_gradient as module
from resdet.cpu.weight_gradient import convolve, is_faster, weight_gradient


@pytest.fixture
def always(monkeypatch):
    """The products are taken wherever they can be; how often is counted."""
    taken = []
    monkeypatch.setattr(module, "is_faster", lambda *shapes: True)
    monkeypatch.setattr(module, "weight_gradient", lambda *a: (taken.append(1), weight_gradient(*a))[1])
    return taken


def test_by_hand():
    # One image, one channel, ones everywhere: each weight counts the cells at which it meets the image, 3x3 here.
    ones = torch.ones(1, 1, 3, 3)
    expected = [[4.0, 6, 4], [6, 9, 6], [4, 6, 4]]
    assert weight_gradient(ones, ones)[0, 0].tolist() == expected
    # With stride 2 the outputs centre on the corners of the 3x3 image.
    assert weight_gradient(ones, torch.ones(1, 1, 2, 2), stride=2)[0, 0].tolist() == [[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 1), (1, 2)])
@pytest.mark.parametrize("shape", [(1, 3, 5, 7), (2, 4, 6, 8), (3, 2, 1, 1), (2, 5, 9, 2), (5, 3, 16, 17)])
def test_the_librarys_gradient(shape, kernel, stride, layout, monkeypatch):
    monkeypatch.setattr(module, "CELLS", 40)  # one image of some shapes at a time, all of others
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=layout)
    weight = torch.randn(6, shape[1], kernel, kernel, dtype=torch.float64, requires_grad=True)
    answer = F.conv2d(x, weight, stride=stride, padding=kernel // 2)
    gradient = torch.randn_like(answer).contiguous(memory_format=layout)
    (wanted,) = torch.autograd.grad(answer, weight, gradient)
    torch.testing.assert_close(weight_gradient(x, gradient, kernel, stride), wanted)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 1), (1, 2)])
def test_a_convolution_with_all_its_gradients(always, bias, kernel, stride):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, kernel, stride=stride, padding=kernel // 2, bias=bias)
    x = torch.randn(2, 4, 9, 10, requires_grad=True)
    answers = []
    for function in (conv, lambda x: convolve(x, conv)):
        conv.zero_grad()
        x.grad = None
        y = function(x)
        y.square().sum().backward()
        answers.append([y.detach(), x.grad, *(p.grad.clone() for p in conv.parameters())])
    assert len(always) == 1
    torch.testing.assert_close(answers[1], answers[0], rtol=1e-5, atol=1e-4)


def test_other_weights_than_its_own(always):
    conv = nn.Conv2d(2, 3, 3, padding=1)
    scale = torch.tensor([1.0, 2, 3], requires_grad=True)
    x = torch.randn(1, 2, 5, 5)
    y = convolve(x, conv, conv.weight * scale[:, None, None, None], torch.zeros(3))
    y.sum().backward()
    wanted = torch.autograd.grad(F.conv2d(x, conv.weight * scale[:, None, None, None], padding=1).sum(), scale)[0]
    assert len(always) == 1
    torch.testing.assert_close(scale.grad, wanted)


def test_hooks_are_called(always):
    conv, seen = nn.Conv2d(2, 3, 3, padding=1), []
    conv.register_forward_hook(lambda *_: seen.append(1))
    convolve(torch.randn(1, 2, 4, 4), conv).sum().backward()
    assert seen == [1] and not always


def test_second_derivatives(always):
    torch.manual_seed(0)
    conv, x = nn.Conv2d(2, 3, 3, padding=1), torch.randn(1, 2, 4, 4, requires_grad=True)
    answers = []
    for function in (conv, lambda x: convolve(x, conv)):
        of_x, of_weight = torch.autograd.grad(function(x).pow(3).sum(), (x, conv.weight), create_graph=True)
        assert not always  # the first derivative is the library's, which has a second one
        answers.append(torch.autograd.grad(of_x.square().sum() + of_weight.square().sum(), (x, conv.weight)))
    torch.testing.assert_close(answers[1], answers[0])


@pytest.mark.parametrize(
    "how",
    [
        {"kernel_size": 1, "padding": 1},
        {"kernel_size": 3, "padding": 0},
        {"kernel_size": 3, "padding": 1, "groups": 2},
        {"kernel_size": 3, "padding": 2, "dilation": 2},
        {"kernel_size": 3, "padding": 1, "stride": 3},
        {"kernel_size": 3, "padding": "same"},
        {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    ],
)
def test_other_convolutions_stay_with_the_library(always, how):
    conv, x = nn.Conv2d(4, 4, **how), torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(convolve(x, conv), conv(x))
    convolve(x, conv).sum().backward()
    assert not always


def test_where_nobody_asks_for_the_gradient(always):
    conv, x = nn.Conv2d(2, 2, 3, padding=1), torch.randn(1, 2, 4, 4, requires_grad=True)
    with torch.no_grad():
        convolve(x, conv)
    conv.requires_grad_(False)
    convolve(x, conv).sum().backward()
    conv.requires_grad_(True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert convolve(x, conv).dtype == torch.bfloat16
    convolve(x.double(), conv.double()).sum().backward()
    convolve(x.new_zeros(0, 2, 4, 4), conv.float()).sum().backward()
    assert not always


def test_the_compiler_has_its_own_way(always):
    conv, x = nn.Conv2d(2, 2, 3, padding=1), torch.randn(1, 2, 4, 4)
    compiled = torch.compile(lambda x: convolve(x, conv), backend="eager")
    torch.testing.assert_close(compiled(x), conv(x))
    compiled(x).sum().backward()
    assert not always


@pytest.mark.parametrize(
    ("capability", "shape", "weight", "faster"),
    [
        ("AVX512", (2, 256, 200, 272), (256, 256, 3, 3), False),
        ("AVX2", (2, 256, 200, 272), (256, 256, 3, 3), True),
        ("DEFAULT", (2, 256, 200, 272), (256, 256, 3, 3), True),
        ("AVX2", (1024, 512, 7, 7), (512, 512, 3, 3), False),  # regions of a C4 net
        ("AVX2", (128, 16, 32, 32), (16, 16, 3, 3), False),  # CIFAR
        ("AVX2", (2, 256, 25, 34), (256, 256, 3, 3), False),
        ("AVX2", (2, 512, 25, 34), (512, 512, 3, 3), True),
        ("AVX2", (2, 1024, 50, 68), (256, 1024, 1, 1), True),
        ("AVX2", (2, 512, 100, 136), (128, 512, 1, 1), False),
        ("AVX512", (2, 1024, 50, 68), (256, 1024, 1, 1), False),
    ],
)
def test_the_rule(monkeypatch, capability, shape, weight, faster):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert is_faster(shape, weight) is faster


def test_narrow_projections_do_not_end_the_process():
    # torch.nn.Conv2d does, with AVX-512 and three threads or more: a fault of the library's weight gradient.
    code = """
import torch
from torch import nn
from resdet.cpu.weight_gradient import convolve

torch.set_num_threads(4)
for channels, width in ((8, 8), (8, 16), (12, 16)):
    conv = nn.Conv2d(channels, width, 1, stride=2).to(memory_format=torch.channels_last)
    x = torch.randn(2, channels, 24, 32).to(memory_format=torch.channels_last)
    convolve(x, conv).sum().backward()
    expected = x[:, :, ::2, ::2].sum((0, 2, 3)).expand(width, -1)
    torch.testing.assert_close(conv.weight.grad[:, :, 0, 0], expected, rtol=1e-4, atol=1e-3)
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "OMP_NUM_THREADS": "4"})
