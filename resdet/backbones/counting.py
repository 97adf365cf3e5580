"""Exact counts of parameters and multiply-adds, as in the last row of Table 1 ("FLOPs" there)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call


class Counts(NamedTuple):
    """What a net holds and what an image costs."""

    parameters: int
    """Learned numbers: buffers, as BN's means and variances, are not among them."""
    multiply_adds: int
    """Of convolutions and linear layers for one image; BN, ReLU, pooling and additions are not counted."""


def count(net: nn.Module, hw: Sequence[int]) -> Counts:
    """Count on the meta device: shapes only, no arithmetic, whatever device the net is on.

    Args:
        net: takes (1, 3, H, W) float images; left as it is.
        hw: height and width of the image.
    """
    layers = [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    modes = {module: module.training for module in net.modules()}
    costs: list[int] = []
    hooks = [layer.register_forward_hook(lambda m, _, out: costs.append(_multiply_adds(m, out))) for layer in layers]
    tensors = {n: torch.empty_like(t, device="meta") for n, t in (*net.named_parameters(), *net.named_buffers())}
    try:
        with torch.no_grad():
            functional_call(net.eval(), tensors, (torch.empty(1, 3, *hw, device="meta"),))
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    return Counts(sum(p.numel() for p in net.parameters()), sum(costs))


def _multiply_adds(layer: nn.Module, output: Tensor) -> int:
    """One row of the weight for each number that comes out."""
    return output.numel() * prod(layer.weight.shape[1:])
