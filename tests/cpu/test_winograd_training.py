"""Training by Winograd's algorithm gives the library's outputs and gradients, and steps aside where it does not fit."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resdet.backbones.frozen import FrozenBatchNorm
from resdet.cpu import winograd
from resdet.cpu.folding import conv_norm
from resdet.cpu.weight_gradient import convolve


@pytest.fixture
def always(monkeypatch):
    """Every convolution that fits is marked and computed so; the calls are written down."""
    calls = []
    monkeypatch.setattr(winograd, "LEAST_CHANNELS_IN_TRAINING", 1)
    monkeypatch.setattr(winograd, "LEAST_TILES", 0)
    for name in ("convolve", "input_gradient", "weight_gradient"):
        monkeypatch.setattr(winograd, name, _written(calls, name, getattr(winograd, name)))
    return calls


def _written(calls, name, function):
    return lambda *arguments: (calls.append(name), function(*arguments))[1]


class Ours(nn.Module):
    """A module of the package, as far as marks are concerned."""

    __module__ = "resdet.tests"

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)


def _marked(*arguments, **settings) -> nn.Conv2d:
    conv = nn.Conv2d(*arguments, **{"kernel_size": 3, "padding": 1, **settings})
    winograd.train_by_winograd(Ours(conv=conv))
    return conv


def test_weight_gradient_by_hand():
    # One image, one channel, ones everywhere: each weight counts the cells at which it meets the image, 3x3 here.
    ones = torch.ones(1, 1, 3, 3, dtype=torch.float64)
    expected = torch.tensor([[4.0, 6, 4], [6, 9, 6], [4, 6, 4]], dtype=torch.float64)
    torch.testing.assert_close(winograd.weight_gradient(ones, ones)[0, 0], expected)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("shape", [(1, 3, 5, 7), (2, 4, 8, 8), (3, 2, 1, 1), (2, 5, 9, 2), (5, 3, 16, 17)])
@pytest.mark.parametrize("chunk", [1, 4, 512])
def test_all_three_in_float64(shape, layout, chunk, monkeypatch):
    monkeypatch.setattr(winograd, "CHUNK", chunk)
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    weight = torch.randn(6, shape[1], 3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(6, dtype=torch.float64)
    wanted = F.conv2d(x, weight, bias, padding=1)
    gradient = torch.randn_like(wanted).contiguous(memory_format=layout)
    of_x, of_weight = torch.autograd.grad(wanted, (x, weight), gradient)
    with torch.no_grad():
        near = {"rtol": 1e-10, "atol": 1e-10}
        torch.testing.assert_close(winograd.convolve(x, weight, bias), wanted.detach(), **near)
        torch.testing.assert_close(winograd.input_gradient(gradient, weight), of_x, **near)
        torch.testing.assert_close(winograd.weight_gradient(x, gradient), of_weight, **near)


def test_rounding_of_float32():
    torch.manual_seed(0)
    x, gradient = torch.randn(2, 1, 256, 20, 30).relu().unbind()
    weight = torch.randn(256, 256, 3, 3) / 48
    exact = [each.double().requires_grad_() for each in (x, weight)]
    wanted = F.conv2d(*exact, padding=1)
    answers = (
        winograd.convolve(x, weight),
        winograd.input_gradient(gradient, weight),
        winograd.weight_gradient(x, gradient),
    )
    for answer, right in zip(answers, (wanted, *torch.autograd.grad(wanted, exact, gradient.double())), strict=True):
        assert (answer - right).abs().max() < 3e-5 * right.abs().max()


@pytest.mark.parametrize("shape", [(2, 4, 9, 10), (2, 4, 8, 12), (1, 4, 7, 8)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_with_all_its_gradients(always, bias, shape):
    torch.manual_seed(0)
    conv, x = _marked(4, 6, bias=bias), torch.randn(shape, requires_grad=True)
    answers = []
    for function in (conv, lambda x: convolve(x, conv)):
        conv.zero_grad()
        x.grad = None
        y = F.leaky_relu(function(x), 2.0, inplace=True)  # as the blocks do: it must be no view
        y.square().sum().backward()
        answers.append([y.detach(), x.grad, *(p.grad.clone() for p in conv.parameters())])
    assert always == ["convolve", "input_gradient", "weight_gradient"]
    torch.testing.assert_close(answers[1], answers[0], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("frozen", [True, False])
def test_batchnorm_frozen_and_learning(always, frozen):
    torch.manual_seed(0)
    conv, norm = _marked(4, 6, bias=False), FrozenBatchNorm(6) if frozen else nn.BatchNorm2d(6)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    plain, plain_norm = nn.Conv2d(4, 6, 3, padding=1, bias=False), copy.deepcopy(norm)
    plain.load_state_dict(conv.state_dict())
    x = torch.randn(2, 4, 9, 10)
    sums = [(conv_norm(x, *pair) ** 3).sum() for pair in ((conv, norm), (plain, plain_norm))]
    for each in sums:
        each.backward()
    assert always == ["convolve", "weight_gradient"]  # nobody asks for the gradient of the images
    torch.testing.assert_close(conv.weight.grad, plain.weight.grad, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(norm.state_dict(), plain_norm.state_dict(), rtol=1e-4, atol=1e-5)


def test_second_derivatives(always):
    torch.manual_seed(0)
    conv, x = _marked(2, 3), torch.randn(1, 2, 4, 4, requires_grad=True)
    answers = []
    for function in (conv, lambda x: convolve(x, conv)):
        of_x, of_weight = torch.autograd.grad(function(x).pow(3).sum(), (x, conv.weight), create_graph=True)
        assert set(always) <= {"convolve"}  # the first derivative is the library's, which has a second one
        answers.append(torch.autograd.grad(of_x.square().sum() + of_weight.square().sum(), (x, conv.weight)))
    torch.testing.assert_close(answers[1], answers[0], rtol=1e-4, atol=1e-3)


def test_where_it_steps_aside(always, monkeypatch):
    conv, x = _marked(2, 2), torch.randn(1, 2, 4, 4, requires_grad=True)
    with torch.no_grad():
        convolve(x, conv)  # validation is that of the checkpoint
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert convolve(x, conv).dtype == torch.bfloat16
    torch.compile(lambda x: convolve(x, conv), backend="eager")(x).sum().backward()
    convolve(x.new_zeros(0, 2, 4, 4), conv).sum().backward()
    convolve(x.double(), copy.deepcopy(conv).double()).sum().backward()
    convolve(x, nn.Conv2d(2, 2, 3, padding=1)).sum().backward()  # not marked
    monkeypatch.setattr(winograd, "LEAST_TILES", 2)
    convolve(x, conv).sum().backward()  # one tile
    assert not always
    convolve(torch.randn(1, 2, 4, 5), conv).sum().backward()
    assert always


def test_what_is_marked():
    wide = {"in_channels": 128, "out_channels": 256, "kernel_size": 3, "padding": 1}
    net = Ours(
        wide=nn.Conv2d(**wide),
        narrow=nn.Conv2d(64, 256, 3, padding=1),
        strided=nn.Conv2d(**wide, stride=2),
        grouped=nn.Conv2d(**wide, groups=2),
        pointwise=nn.Conv2d(256, 256, 1),
        levels=nn.ModuleList([nn.Conv2d(**wide)]),
        called_by_torch=nn.Sequential(nn.Conv2d(**wide)),
    )
    before = list(net.state_dict()), [type(module) for module in net.modules()]
    assert winograd.train_by_winograd(net) == 2
    assert before == (list(net.state_dict()), [type(module) for module in net.modules()])
    marked = {name for name, module in copy.deepcopy(net).named_modules() if winograd.is_marked(module)}
    assert marked == {"wide", "levels.0"}
