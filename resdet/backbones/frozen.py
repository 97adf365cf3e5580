"""BN as a constant affine map (He et al. 2015, appendix A): statistics of pre-training, fixed in detection.

Everything is a buffer: no optimiser decays it, no ``train()`` call updates it, and DDP has nothing to reduce.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from resdet.cpu.folding import ConstantAffine
from resdet.errors import InputError


class FrozenBatchNorm(ConstantAffine):
    """``(x - running_mean) / sqrt(running_var + eps) * weight + bias``, all of it constant.

    State-dict keys are BatchNorm2d's; ``num_batches_tracked`` is accepted and dropped.

    Args:
        channels: C of the maps.
        eps: added to the variance.
    """

    def __init__(self, channels: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape and dtype, in either mode."""
        if not x.requires_grad:  # nothing is kept for a backward pass, and torch's kernel is the fastest
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        # torch's kernel would keep x, one more map per layer; the affine map keeps only C numbers.
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return (x * scale.to(x.dtype).view(-1, 1, 1)).add_(shift.to(x.dtype).view(-1, 1, 1))

    def extra_repr(self) -> str:
        """For ``print(net)``."""
        return f"{len(self.weight)}, eps={self.eps}"

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *rest: object) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def freeze_batchnorm(module: nn.Module) -> nn.Module:
    """Replace every BatchNorm2d in a module, however nested, by a :class:`FrozenBatchNorm` with its statistics.

    Args:
        module: changed in place, unless it is itself a BatchNorm2d.

    Returns:
        The module, or its replacement.

    Raises:
        InputError: for a norm layer that keeps no statistics, or one of another library than torch and timm. timm's
            ``BatchNormAct2d`` becomes timm's own ``FrozenBatchNormAct2d``.
    """
    if isinstance(module, _BatchNorm):
        return _frozen(module)
    for name, child in module.named_children():
        setattr(module, name, freeze_batchnorm(child))
    return module


def _frozen(bn: _BatchNorm) -> nn.Module:
    if type(bn).__module__.startswith("timm.") and bn.running_mean is not None:  # BN and activation in one
        from timm.layers import freeze_batch_norm_2d

        return freeze_batch_norm_2d(bn)
    if type(bn) not in (nn.BatchNorm2d, nn.SyncBatchNorm) or bn.running_mean is None:
        needed = "nn.BatchNorm2d or nn.SyncBatchNorm with running statistics"
        raise InputError(
            "freezing batch normalisation", found=f"{type(bn).__qualname__}({bn.extra_repr()})", needed=needed
        )
    frozen = FrozenBatchNorm(bn.num_features, eps=bn.eps).to(bn.running_mean)
    frozen.load_state_dict(bn.state_dict(), strict=bn.affine)
    return frozen.train(bn.training)
