"""Activation checkpointing: keep each block's input only, and compute the block again in the backward pass.

A block of ResNet-1202 keeps four maps for the backward pass; its input is one of them. At a third more work (Chen et
al. 2016, "Training deep nets with sublinear memory cost") its maps for 128 images take 2.7 GiB instead of 11.0
(float32; the sizes of the saved tensors of two images, times 64), and weights, gradients and workspace fit 16 GB
beside them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from resdet.backbones.resnet import blocks_of, stages_of


class CheckpointedStage(nn.Sequential):
    """A stage that forgets the insides of its blocks. Outputs, gradients and BN statistics are those of the stage."""

    def forward(self, x: Tensor) -> Tensor:
        """As ``nn.Sequential``."""
        if not torch.is_grad_enabled():
            return super().forward(x)
        for block in self:
            learns = any(isinstance(module, _BatchNorm) for module in block.modules())
            how = {"context_fn": partial(_contexts, block)} if learns else {}
            x = checkpoint(block, x, use_reentrant=False, **how)
        return x


def checkpoint_blocks(net: nn.Module) -> nn.Module:
    """Checkpoint every block of a residual net: ours, torchvision's or timm's.

    Args:
        net: changed in place; parameters and their names are not.

    Returns:
        The net.

    Raises:
        InputError: it has no residual blocks.
    """
    blocks_of(net)
    for number, stage in enumerate(stages_of(net), start=1):
        setattr(net, f"layer{number}", CheckpointedStage(*stage))
    return net


def _contexts(block: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    """Of the first and of the second forward pass."""
    return nullcontext(), _without_statistics(block)


@contextmanager
def _without_statistics(block: nn.Module) -> Iterator[None]:
    """Let BN average the batch, which it has seen already, into copies that are thrown away."""
    layers = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    kept = [(layer, name, buffer) for layer in layers for name, buffer in layer.named_buffers(recurse=False)]
    for layer, name, buffer in kept:
        setattr(layer, name, buffer.clone())
    try:
        yield
    finally:
        for layer, name, buffer in kept:
            setattr(layer, name, buffer)
