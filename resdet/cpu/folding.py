"""Fewer passes over memory: a constant BN as part of its convolution, ReLU and addition as part of its output.

``bn(conv(x)) = (w * s) x + (b - m s)`` with ``s = weight / sqrt(running_var + eps)``. On a CPU a quarter of the time
of a large image goes into passing over maps once more for BN, and more for ReLU and the additions. The blocks fold on
the way, also in training (:func:`conv_norm`, :func:`conv_relu`); a net that is loaded for inference only is folded
once (:func:`fold_batchnorm`).
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resdet.cpu.weight_gradient import convolve


class ConstantAffine(nn.Module):
    """What a constant BN is to this file: ``weight``, ``bias``, ``running_mean``, ``running_var`` (C,) and ``eps``."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    eps: float


def conv_norm(x: Tensor, conv: nn.Module, norm: nn.Module) -> Tensor:
    """``norm(conv(x))``. A :class:`ConstantAffine` costs no pass over the map: its factors go into the weights."""
    if not (type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and isinstance(norm, ConstantAffine)):
        return norm(convolve(x, conv) if type(conv) is nn.Conv2d else conv(x))
    return convolve(x, conv, *_folded(conv, norm))


def conv_relu(x: Tensor, conv: nn.Module, norm: nn.Module | None = None, *, add: Tensor | None = None) -> Tensor:
    """``relu(norm(conv(x)) + add)``, where ``norm`` and ``add`` may be missing: on a CPU in one pass at inference."""
    addable = add is None or (add.dim() == 4 and add.shape[2:].numel() > 1)  # torch 2.6 fails on maps of one cell
    if _fusible(x, conv, norm) and addable:
        weight, bias = _folded(conv, norm) if isinstance(norm, ConstantAffine) else (conv.weight, conv.bias)
        where = (conv.padding, conv.stride, conv.dilation, conv.groups)
        fused = torch.ops.mkldnn._convolution_pointwise  # oneDNN's, as torch.compile uses them
        if add is None:
            return fused(x, weight, bias, *where, "relu", [], "")
        return fused.binary(x, add, weight, bias, *where, "add", 1.0, "relu", [], "")
    y = conv_norm(x, conv, norm or nn.Identity())
    return F.relu(y if add is None else y + add, inplace=True)


@torch.no_grad()
def fold_batchnorm(module: nn.Module) -> nn.Module:
    """Fold every BN that follows a convolution, wherever in a post-activation net, with its running statistics.

    Pairs are found as our nets, torchvision's and timm's name them: ``conv1`` and ``bn1``, ``conv2`` and ``bn2`` ...,
    and neighbours in an ``nn.Sequential``. A norm that does not follow a convolution stays.

    Args:
        module: changed in place. Its state dict is then another one, so fold what is loaded for inference only.

    Returns:
        The module.
    """
    for parent in list(module.modules()):
        for conv, norm in _pairs(parent):
            first, second = getattr(parent, conv), getattr(parent, norm)
            if isinstance(first, nn.Conv2d) and _is_affine(second):
                weight, bias = _folded(first, second)
                first.weight.copy_(weight)
                first.bias = nn.Parameter(bias, requires_grad=False)
                setattr(parent, norm, nn.Identity())
        if hasattr(parent, "folded"):
            parent.folded = all(isinstance(getattr(parent, norm), nn.Identity) for _, norm in _pairs(parent))
    return module


def _pairs(parent: nn.Module) -> list[tuple[str, str]]:
    names = list(dict(parent.named_children()))
    if isinstance(parent, nn.Sequential):
        return list(pairwise(names))
    pairs = [(name, f"bn{name[4:]}") for name in names if name.startswith("conv") and f"bn{name[4:]}" in names]
    return [pair for pair in pairs if names.index(pair[0]) < names.index(pair[1])]  # pre-activation: the norm is before


def _is_affine(norm: nn.Module) -> bool:
    """Whether it is, at inference, one factor and one shift for each channel, and nothing else."""
    learned = type(norm) in (nn.BatchNorm2d, nn.SyncBatchNorm) and norm.affine and norm.track_running_stats
    return learned or isinstance(norm, ConstantAffine)


def _folded(conv: nn.Conv2d, norm: ConstantAffine | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of both together."""
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - norm.running_mean * scale
    bias = shift if conv.bias is None else conv.bias * scale + shift
    return conv.weight * scale[:, None, None, None], bias


def _fusible(x: Tensor, conv: nn.Module, norm: nn.Module | None) -> bool:
    """Whether oneDNN takes it: a float32 map on a CPU that no backward pass will ask for, and a constant norm."""
    if type(conv) is not nn.Conv2d or not isinstance(norm, (type(None), nn.Identity, ConstantAffine)):
        return False
    if x.device.type != "cpu" or x.dtype != torch.float32 or not x.numel() or torch.is_autocast_enabled("cpu"):
        return False
    if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in conv.parameters())):
        return False
    if torch.compiler.is_compiling():  # the compiler fuses by itself
        return False
    return conv.padding_mode == "zeros" and isinstance(conv.padding, tuple) and torch.backends.mkldnn.is_available()
