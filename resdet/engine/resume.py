"""Going on with a run: what its checkpoint was trained with, what the config says now, and the rates that follow."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from mmengine.optim import OptimWrapper

from resdet.errors import InputError
from resdet.settings import plain

if TYPE_CHECKING:
    from resdet.engine.config import ExperimentConfig

FIXED = ("loader.batch_size", "optimizer.type")
"""What a run cannot change: its steps are counted in such batches, and its optimizer's state is of that kind."""
SILENT = (
    *("loader.workers", "loader.test_batch_size"),
    *("run.log_every", "run.checkpoint_every", "run.compile", "run.tensorboard", "run.sync_check"),
    "run.start_timeout",
)
"""What leaves the weights as they are."""


def settings_of(config: ExperimentConfig, optimizer: OptimWrapper) -> dict[str, Any]:
    """What a run is trained with, in plain values by ``section.name``, as its checkpoints keep it."""
    sections = {name: plain(getattr(config, name)) for name in ("loader", "optimizer", "schedule", "run")}
    said = {f"{section}.{name}": value for section, values in sections.items() for name, value in values.items()}
    said |= {f"optimizer.{name}": plain(value) for name, value in (config.optimizer.model_extra or {}).items()}
    group = optimizer.param_groups[0]
    said["optimizer.lr"] = group.get("initial_lr", group["lr"])  # scaled, where --auto-scale-lr does it
    if not torch.cuda.is_available():
        said["run.threads"] = torch.get_num_threads()  # sums round otherwise with others
    said |= {"augmentation": plain(config.augmentation), "train_data": config.train_data.describe()}
    return {name: value for name, value in said.items() if name not in SILENT}


def changes(source: object, trained: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A line for each setting in which a run goes on otherwise.

    Args:
        source: the checkpoint.
        trained: its settings; empty if it is of a version that kept none.
        now: those of the config.

    Raises:
        InputError: one of them cannot change within a run.
    """
    differ = [name for name in now if name in trained and trained[name] != now[name]]
    for name in set(FIXED) & set(differ):
        needed = f"{name}={trained[name]}; or, in another --work-dir, load_from={source}, which starts a new run"
        raise InputError(f"resuming {source}", found=f"{name}={now[name]} in the config", needed=needed)
    return [f"{name}: {trained[name]} in the checkpoint, {now[name]} in the config" for name in differ]


def rates_of(optimizer: OptimWrapper) -> list[dict[str, Any]]:
    """Learning rates and other numbers of the parameter groups, without the parameters."""
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


def follow(optimizer: OptimWrapper, rates: Sequence[Mapping[str, Any]], schedulers: Sequence[Any], steps: int) -> None:
    """Set the rates as if the schedule had been followed from the start.

    Args:
        optimizer: with the state of a checkpoint.
        rates: of a new run, see :func:`rates_of`.
        schedulers: as they are at its start.
        steps: how many were done.
    """
    for group, said in zip(optimizer.param_groups, rates, strict=True):
        group.update(said)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected call of `scheduler.step", UserWarning)  # no step of ours is skipped
        for _ in range(steps):
            for scheduler in schedulers:
                scheduler.step()
