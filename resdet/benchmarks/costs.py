"""What a classification training costs on this machine: measured images per second, and hours for the whole of it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from resdet.engine import distributed
from resdet.engine.config import ExperimentConfig, load_config
from resdet.engine.experiment import build_net
from resdet.engine.optim import build_optimizer, in_steps
from resdet.errors import InputError

IMAGES = {32: 50_000, 224: 1_281_167, 176: 1_281_167}
"""Training images by the side of the crop: CIFAR, ImageNet. Only their number is needed, not the images."""


class Cost(NamedTuple):
    """One config on this machine."""

    config: str
    side: int
    """Of the crops."""
    batch_size: int
    """Images of a measured step; the config's may be larger."""
    images_per_second: float
    steps: int
    """Of the whole training, of the config's own batch."""
    hours: float


def training_cost(path: str | Path, *, batch_size: int, runs: int = 5, amp: str = "off") -> Cost:
    """Time whole training steps (forward, backward, update) on random images.

    Args:
        path: a classification config.
        batch_size: at most so many images a step; memory bounds it on small machines.
        runs: timed steps, after two that are not.
        amp: off, bf16 or fp16.

    Raises:
        InputError: not a classification config, or a crop whose data set is not known.
    """
    config = load_config(path)
    if config.task.name != "classification":
        raise InputError(f"config {path}", found=f"task = {config.task.name!r}", needed="a classification config")
    side, classes = _side(config)
    net = build_net(config, num_classes=classes, load_init=False).to(distributed.device()).train()
    settings = config.loader
    batch = min(batch_size, settings.batch_size)
    wrapper = build_optimizer(net, config.optimizer, amp=amp, lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, classes, (batch,), generator=generator)
    images, labels = images.to(distributed.device()), labels.to(distributed.device())

    def step() -> None:
        with wrapper.optim_context(net):
            loss = net.loss(images, labels)["loss_cls"]
        wrapper.update_params(loss)

    seconds = _median_seconds(step, runs)
    schedule = config.schedule
    steps = in_steps(schedule.length, schedule, -(-IMAGES[side] // settings.batch_size))
    rate = batch / seconds
    return Cost(str(path), side, batch, rate, steps, steps * settings.batch_size / rate / 3600)


def _side(config: ExperimentConfig) -> tuple[int, int]:
    """Side of the training crops, and the number of classes of the set that has such crops."""
    side = getattr(config.train_data.settings, "crop", 32)
    if side not in IMAGES:
        needed = f"a crop of {', '.join(map(str, IMAGES))} pixels"
        raise InputError(f"config {config.filename}", found=f"train_data.crop = {side}", needed=needed)
    return side, 10 if side == 32 else 1000


def _median_seconds(step: Callable[[], None], runs: int) -> float:
    seconds = []
    for _ in range(runs + 2):
        started = time.perf_counter()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[2:])
