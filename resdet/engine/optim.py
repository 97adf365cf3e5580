"""The optimizer and the learning rate of a run, from the sections ``optimizer``, ``schedule`` and ``run``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from mmengine.optim import AmpOptimWrapper, CosineAnnealingLR, LinearLR, MultiStepLR, OptimWrapper
from torch import nn

from resdet.engine.settings import Optimizer, Schedule
from resdet.errors import InputError

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def autocast(amp: str) -> AbstractContextManager:
    """The context of ``run.amp``, on a GPU where there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float16 if amp == "fp16" else torch.bfloat16
    return torch.autocast(device, dtype=dtype, enabled=amp != "off")


class _ClipsQuietly:
    """Clips gradients without logging their norm, for which mmengine makes the host wait at each update."""

    def _clip_grad(self) -> None:
        clipped = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        if clipped:
            self.clip_func(clipped, **self.clip_grad_kwargs)


class PlainOptimWrapper(_ClipsQuietly, OptimWrapper):
    """In the dtype of the weights."""


class Fp16OptimWrapper(_ClipsQuietly, AmpOptimWrapper):
    """Autocast to float16 with a loss scale; on a GPU."""


class Bf16OptimWrapper(_ClipsQuietly, OptimWrapper):
    """Autocast to bfloat16 on any device; without a loss scale, which bfloat16's range does not need."""

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Run forward passes in bfloat16."""
        with super().optim_context(model), autocast("bf16"):
            yield


def build_optimizer(net: nn.Module, given: Optimizer, *, amp: str, lr: float) -> OptimWrapper:
    """SGD over the parameters that train.

    Raises:
        InputError: fp16 without a GPU, or nothing left to train.
    """
    parameters = [p for p in net.parameters() if p.requires_grad]
    if not parameters:
        raise InputError("optimizer", found="a net without trainable parameters", needed="fewer frozen stages")
    if given.nesterov and not given.momentum:
        raise InputError("optimizer.nesterov", found="True with momentum 0", needed="a momentum above 0")
    groups: list = [{"params": parameters}]
    if given.norm_weight_decay is not None:
        norms = {id(p) for module in net.modules() if isinstance(module, _NORMS) for p in module.parameters()}
        groups = [
            {"params": [p for p in parameters if id(p) not in norms]},
            {"params": [p for p in parameters if id(p) in norms], "weight_decay": given.norm_weight_decay},
        ]
    how = {"momentum": given.momentum, "weight_decay": given.weight_decay, "nesterov": given.nesterov}
    sgd = torch.optim.SGD(groups, lr=lr, fused=True if torch.cuda.is_available() else None, **how)
    clip = None if given.clip_norm is None else {"max_norm": given.clip_norm}
    common = {"optimizer": sgd, "clip_grad": clip, "accumulative_counts": given.accumulate}
    if amp == "off":
        return PlainOptimWrapper(**common)
    if amp == "bf16":
        return Bf16OptimWrapper(**common)
    if not torch.cuda.is_available():
        raise InputError("run.amp", found="fp16 on a machine without a GPU", needed="bf16")
    return Fp16OptimWrapper(dtype="float16", **common)


def in_steps(length: float, schedule: Schedule, steps_per_epoch: int) -> int:
    """A length of the schedule's unit in steps, at least one."""
    return max(1, round(length * (steps_per_epoch if schedule.unit == "epoch" else 1)))


def build_schedulers(optimizer: OptimWrapper, schedule: Schedule, steps_per_epoch: int) -> list:
    """Warm-up, which ends, then steps or a cosine.

    A warm-up by the training error is not here but in :class:`resdet.engine.hooks.ErrorWarmup`.
    """
    total = in_steps(schedule.length, schedule, steps_per_epoch)
    warmup = 0 if schedule.warmup_error is not None else min(schedule.warmup_steps, total)
    schedulers = []
    if warmup > 1:  # of one step, mmengine would never end it
        schedulers.append(LinearLR(optimizer, start_factor=schedule.warmup_factor, by_epoch=False, begin=0, end=warmup))
    if schedule.policy == "cosine":
        if total > warmup:
            schedulers.append(
                CosineAnnealingLR(optimizer, T_max=total - warmup, by_epoch=False, begin=warmup, end=total)
            )
    elif schedule.milestones:
        marks = [in_steps(m, schedule, steps_per_epoch) for m in schedule.milestones]
        schedulers.append(MultiStepLR(optimizer, milestones=marks, gamma=schedule.gamma, by_epoch=False))
    return schedulers
