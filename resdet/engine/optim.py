"""The optimizer and the learning rate of a run, from the sections ``optimizer``, ``schedule`` and ``run``."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from mmengine.optim import (
    AmpOptimWrapper,
    CosineAnnealingLR,
    ExponentialLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    OptimWrapper,
    PolyLR,
)
from torch import nn

from resdet.engine.settings import OPTIMIZERS, Optimizer, Schedule
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
    """The optimizer of a config over the parameters that train.

    Raises:
        InputError: fp16 without a GPU, or nothing left to train.
    """
    parameters = [p for p in net.parameters() if p.requires_grad]
    if not parameters:
        raise InputError("optimizer", found="a net without trainable parameters", needed="fewer frozen stages")
    groups: list = [{"params": parameters}]
    if given.norm_weight_decay is not None:
        norms = {id(p) for module in net.modules() if isinstance(module, _NORMS) for p in module.parameters()}
        groups = [
            {"params": [p for p in parameters if id(p) not in norms]},
            {"params": [p for p in parameters if id(p) in norms], "weight_decay": given.norm_weight_decay},
        ]
    kind = OPTIMIZERS[given.type]
    fused = {"fused": True} if torch.cuda.is_available() and "fused" in inspect.signature(kind).parameters else {}
    optimizer = kind(groups, lr=lr, **{**fused, **given.arguments()})
    clip = None if given.clip_norm is None else {"max_norm": given.clip_norm}
    common = {"optimizer": optimizer, "clip_grad": clip, "accumulative_counts": given.accumulate}
    if amp == "off":
        return PlainOptimWrapper(**common)
    if amp == "bf16":
        return Bf16OptimWrapper(**common)
    if not torch.cuda.is_available():
        raise InputError("run.amp", found="fp16 on a machine without a GPU", needed="bf16")
    return Fp16OptimWrapper(dtype="float16", **common)


def in_steps(length: float, schedule: Schedule, steps_per_epoch: int) -> int:
    """A length of the schedule's unit in steps, at least one; stretched where the run has few (``least_steps``)."""
    unit = steps_per_epoch if schedule.unit == "epoch" else 1
    return max(1, round(length * max(unit, schedule.least_steps / schedule.length)))


def build_schedulers(optimizer: OptimWrapper, schedule: Schedule, steps_per_epoch: int) -> list:
    """Warm-up, which ends, then the policy of the schedule.

    A warm-up by the training error is not here but in :class:`resdet.engine.hooks.ErrorWarmup`.
    """
    total = in_steps(schedule.length, schedule, steps_per_epoch)
    warmup = 0 if schedule.warmup_error is not None else min(schedule.warmup_steps, total)
    schedulers = []
    if warmup > 1:  # of one step, mmengine would never end it
        schedulers.append(LinearLR(optimizer, start_factor=schedule.warmup_factor, by_epoch=False, begin=0, end=warmup))
    rest = {"by_epoch": False, "begin": warmup, "end": total}
    if schedule.policy == "step":
        marks = [in_steps(mark, schedule, steps_per_epoch) for mark in schedule.milestones]
        more = [MultiStepLR(optimizer, milestones=marks, gamma=schedule.gamma, by_epoch=False)] if marks else []
    elif total <= warmup:
        more = []
    elif schedule.policy == "cosine":
        more = [CosineAnnealingLR(optimizer, T_max=total - warmup, eta_min_ratio=schedule.final_factor, **rest)]
    elif schedule.policy == "linear":
        more = [LinearLR(optimizer, start_factor=1.0, end_factor=schedule.final_factor, **rest)]
    elif schedule.policy == "poly":
        least = optimizer.param_groups[0]["lr"] * schedule.final_factor
        more = [PolyLR(optimizer, power=schedule.power, eta_min=least, **rest)]
    elif schedule.policy == "exponential":
        more = [ExponentialLR(optimizer, gamma=schedule.gamma ** (1 / (total - warmup)), **rest)]
    else:
        peak = optimizer.param_groups[0]["lr"]
        more = [OneCycleLR(optimizer, eta_max=peak, total_steps=total - warmup, **rest)]
    return schedulers + more
