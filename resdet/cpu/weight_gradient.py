"""The weight gradient of convolutions as matrix products, where oneDNN's own is slow.

Without AVX-512, oneDNN computes the weight gradient of a 3x3 convolution on channels-last maps at a fifth to a third of
the speed of its forward pass. Seen as a table with one row of C numbers for each cell, a zero-padded map shifted by
(y, x) is the same table from row ``y * width + x`` on. So with the output's gradient on the same grid, zero outside its
own cells, the gradient of each of the nine weights is one product of two contiguous tables. With a stride of 2 the
padded map is four tables, one for each parity of row and column.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resdet.cpu import winograd

NUMBERS_IN_CACHE = 350_000
"""Of one image's map, up to which the library is fast; see :func:`is_faster`."""
WIDE = 256
"""Channels on both sides from which on a 1x1 kernel's weight gradient is faster as a product."""
NARROW = 16
"""Channels below which the library's weight gradient of a 1x1 kernel with stride 2 is not safe."""
CELLS = 1 << 16
"""Cells of the maps that are unfolded at a time, at least one image's, so that the copies take little memory."""


def convolve(x: Tensor, conv: nn.Module, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """``conv(x)``, with a faster weight gradient where :func:`is_faster` says so, and by Winograd where it is marked.

    Args:
        x: (N, C, H, W).
        conv: the convolution; anything else is just called.
        weight: in place of its own, with the bias; None: its own.
        bias: likewise.
    """
    own = weight is None
    if own and type(conv) is not nn.Conv2d:
        return conv(x)
    if own:
        weight, bias = conv.weight, conv.bias
    fits = (
        type(conv) is nn.Conv2d
        and conv.padding_mode == "zeros"
        and (conv.kernel_size, conv.padding) in (((3, 3), (1, 1)), ((1, 1), (0, 0)))
        and (conv.dilation, conv.groups) == ((1, 1), 1)
        and conv.stride in ((1, 1), (2, 2))
        and not (own and (conv._forward_hooks or conv._forward_pre_hooks))  # whoever watches it sees it called
    )
    if fits and _is_plain(x, weight):
        if winograd.is_marked(conv) and winograd.pays(x.shape):
            return _Winograd.apply(x, weight, bias)
        if is_faster(x.shape, weight.shape) or _crashes(conv):
            return _Convolution.apply(x, weight, bias, conv.stride[0])
    return conv(x) if own else conv._conv_forward(x, weight, bias)


def _crashes(conv: nn.Conv2d) -> bool:
    """Whether the library may end the process: it does with AVX-512 and three threads or more (torch 2.6 to 2.15).

    For one, ``nn.Conv2d(8, 8, 1, stride=2)`` does by itself, on a channels-last (2, 8, 24, 32) map.
    """
    return conv.kernel_size == (1, 1) and conv.stride == (2, 2) and conv.in_channels < NARROW


def _is_plain(x: Tensor, weight: Tensor) -> bool:
    """A float32 map on a CPU whose convolution will be asked for a weight gradient, outside of a compiler."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.dim() == 4
        and x.numel() > 0
        and torch.is_grad_enabled()
        and weight.requires_grad
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def is_faster(shape: Sequence[int], weight_shape: Sequence[int]) -> bool:
    """Whether products beat the library for an (N, C, H, W) input and a (K, C, k, k) weight on this processor.

    Of a 1x1 kernel, measured on two cores limited to AVX2, GFLOP/s of library and product: 128 and 165 from 2048 to 512
    channels at 25x34, 103 and 149 from 1024 to 512 on 128 regions of 7x7, 127 and 119 from 128 to 512 at 100x136.

    Of a 3x3 kernel, GFLOP/s of library and products: 52 and 123 for 256 channels at 100x136, 64
    and 111 at 40x56, 118 and 110 at 25x34; 54 and 106 for 128 channels at 100x136, 118 and 113 at 40x56; 79 and 123 for
    512 channels at 25x34; with stride 2, 31 and 96 for 256 channels at 100x136. What counts is whether one image's map
    stays in the cache of a core. With AVX-512 the library reaches 170 to 220. The answer depends on nothing else, so
    that a run can be repeated to the bit.
    """
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        return False
    if weight_shape[2] == 1:
        return min(weight_shape[:2]) >= WIDE
    return math.prod(shape[1:]) > NUMBERS_IN_CACHE


class _Convolution(torch.autograd.Function):
    """A 3x3 convolution with padding 1, or a 1x1 one with none: the library's, but for its weight gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
        """(N, C, H, W) and (K, C, k, k) to (N, K, H', W')."""
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.has_bias = stride, bias is not None
        return F.conv2d(x, weight, bias, stride, weight.shape[2] // 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight and bias."""
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        by_products = wants_weight and not torch.is_grad_enabled()  # products have no second derivative
        wants_bias = wants_bias and ctx.has_bias
        # Asked for the bias's gradient alone, the library computes the weight's as well.
        asked = (wants_x, wants_weight and not by_products, wants_bias and not by_products)
        of_x, of_weight, of_bias = _library_gradients(ctx, gradient, asked)
        if by_products:
            of_weight = weight_gradient(x, gradient, weight.shape[2], ctx.stride)
            of_bias = gradient.sum((0, 2, 3)) if wants_bias else None
        return of_x, of_weight, of_bias, None


class _Winograd(torch.autograd.Function):
    """A 3x3 convolution of stride 1 with padding 1 by :mod:`resdet.cpu.winograd`, and so its first derivatives."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(N, C, H, W) and (K, C, 3, 3) to (N, K, H, W)."""
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.has_bias = 1, bias is not None
        return winograd.convolve(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight and bias."""
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        if torch.is_grad_enabled():  # for a second derivative
            return _library_gradients(ctx, gradient, (wants_x, wants_weight, wants_bias))
        return (
            winograd.input_gradient(gradient, weight) if wants_x else None,
            winograd.weight_gradient(x, gradient) if wants_weight else None,
            gradient.sum((0, 2, 3)) if wants_bias else None,
        )


def _library_gradients(ctx: Any, gradient: Tensor, asked: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """Those of x, weight and bias that are asked for, by the library; they have derivatives."""
    x, weight = ctx.saved_tensors
    bias_sizes = [weight.shape[0]] if ctx.has_bias else None
    strides, paddings = [ctx.stride] * 2, [weight.shape[2] // 2] * 2
    return torch.ops.aten.convolution_backward(
        gradient, x, weight, bias_sizes, strides, paddings, [1, 1], False, [0, 0], 1, list(asked)
    )


def weight_gradient(x: Tensor, gradient: Tensor, kernel: int = 3, stride: int = 1) -> Tensor:
    """The gradient of the weight of a 3x3 convolution with padding 1, or of a 1x1 one, by matrix products.

    Args:
        x: (N, C, H, W) input, fastest in channels-last memory.
        gradient: (N, K, H', W') of the output.
        kernel: 3 or 1.
        stride: 1 or 2.

    Returns:
        (K, C, kernel, kernel), in channels-last memory.
    """
    images, channels, height, width = x.shape
    out_channels, *out_hw = gradient.shape[1:]
    if kernel == 1:
        cells = x[:, :, ::stride, ::stride].permute(0, 2, 3, 1).reshape(-1, channels)
        answer = gradient.permute(0, 2, 3, 1).reshape(-1, out_channels).T @ cells
        return answer[:, :, None, None].contiguous(memory_format=torch.channels_last)
    more = 2 // stride  # rows and columns beyond the output's that the shifts reach
    rows, columns = (side + more for side in out_hw)
    at_once = min(images, max(1, CELLS // (rows * columns)))
    grid = _bordered(x.new_empty(at_once, rows, columns, out_channels), (0, out_hw[0]), (0, out_hw[1]))
    padded = x.new_empty(at_once, rows * stride, columns * stride, channels)
    _bordered(padded, (1, height + 1), (1, width + 1))
    answer = x.new_zeros(9, out_channels, channels)
    for first in range(0, images, at_once):
        count = min(at_once, images - first)
        grid[:count, : out_hw[0], : out_hw[1]] = gradient[first : first + count].permute(0, 2, 3, 1)
        padded[:count, 1 : height + 1, 1 : width + 1] = x[first : first + count].permute(0, 2, 3, 1)
        table = grid[:count].view(-1, out_channels)
        for parity in itertools.product(range(stride), repeat=2):
            cells = padded[:count, parity[0] :: stride, parity[1] :: stride].reshape(-1, channels)
            for down, across in itertools.product(range(parity[0], 3, stride), range(parity[1], 3, stride)):
                start = (down // stride) * columns + across // stride
                answer[3 * down + across].addmm_(table[: len(table) - start].T, cells[start:])
    return answer.view(3, 3, out_channels, channels).permute(2, 3, 0, 1).contiguous(memory_format=torch.channels_last)


def _bordered(maps: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
    """(N, H, W, C) maps whose cells outside of [first, last) rows and columns become 0; the rest stays as it is."""
    for outside in (maps[:, : rows[0]], maps[:, rows[1] :], maps[:, :, : columns[0]], maps[:, :, columns[1] :]):
        outside.zero_()
    return maps
