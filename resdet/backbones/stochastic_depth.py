"""Stochastic depth (Huang et al. 2016, "Deep networks with stochastic depth"): train a short net, test the deep one.

In each training batch every block is left out with a probability that grows linearly with its depth; what remains is
the shortcut. At test all blocks take part, each weighed by how often it did in training.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from resdet.backbones.resnet import blocks_of
from resdet.backbones.shortcuts import Absent
from resdet.errors import InputError


class RandomResidual(nn.Module):
    """The addition of a block whose residual is computed with a probability only, drawn once for the whole batch.

    The draw comes from torch's CPU generator. Differs from the paper: a block left out gets no gradient at all (not one
    of zero), so its weights neither decay nor move by momentum in that step. Several processes draw for themselves:
    DistributedDataParallel must then look for unused parameters.

    Args:
        survival: the probability.
    """

    def __init__(self, survival: float) -> None:
        super().__init__()
        self.survival = survival

    def forward(self, x: Tensor, residual: Callable[[Tensor], Tensor], shortcut: Tensor) -> Tensor:
        """The shortcut, and in training sometimes, at test ``survival`` times, the residual (eqs. 2 and 5)."""
        if not self.training:
            return self.survival * residual(x) + shortcut
        return residual(x) + shortcut if torch.rand(()) < self.survival else shortcut

    def extra_repr(self) -> str:
        """Shown by print."""
        return f"survival={self.survival:.3f}"


def stochastic_depth(net: nn.Module, survival: float) -> nn.Module:
    """Give block l of L the probability 1 - l / L (1 - survival) (eq. 4, linear decay).

    Args:
        net: one of ours, changed in place; its state dict is not.
        survival: p_L, of the last block; the paper takes 0.5, and 1 changes nothing.

    Returns:
        The net.

    Raises:
        InputError: ``survival`` is not in (0, 1]; a block has no shortcut, or a gated one, or is not ours.
    """
    if not 0 < survival <= 1:
        raise InputError("stochastic depth", found=f"survival = {survival}", needed="a probability in (0, 1]")
    if survival == 1:
        return net
    blocks = blocks_of(net)
    for number, block in enumerate(blocks, start=1):
        if not hasattr(block, "join") or block.join is not None or isinstance(block.downsample, Absent):
            found = f"block {number} of {type(net).__name__} has no plain sum with a shortcut"
            raise InputError("stochastic depth", found=found, needed="a net of ours with shortcut A, B or C")
    for number, block in enumerate(blocks, start=1):
        block.join = RandomResidual(1 - number / len(blocks) * (1 - survival))
    return net
