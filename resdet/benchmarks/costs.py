"""What a classification training costs on this machine: measured images per second, and hours for the whole of it."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import NamedTuple

import torch

from resdet.benchmarks.jobs import Amp, training
from resdet.engine import distributed
from resdet.engine.config import ExperimentConfig, load_config
from resdet.engine.experiment import build_net
from resdet.engine.optim import in_steps
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

    @property
    def name(self) -> str:
        """Of the config."""
        return Path(self.config).stem


COLUMNS = {
    "config                          ": "{.name}",
    "images/s ": "{.images_per_second:.1f}",
    "steps    ": "{.steps}",
    "hours    ": "{.hours:.1f}",
}


def training_cost(path: str | Path, *, batch_size: int, runs: int = 5, amp: Amp = "off") -> Cost:
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
    device, whole = distributed.device(), config.loader.batch_size
    net = build_net(config, num_classes=classes, load_init=False).to(device).train()
    batch = min(batch_size, whole)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, generator=generator).to(device)
    labels = torch.randint(0, classes, (batch,), generator=generator).to(device)
    job = training(net, lambda: net.loss(images, labels), amp=amp)
    rate = batch / statistics.median([job.run() for _ in range(runs + 2)][2:])
    steps = in_steps(config.schedule.length, config.schedule, -(-IMAGES[side] // whole))
    return Cost(str(path), side, batch, rate, steps, steps * whole / rate / 3600)


def _side(config: ExperimentConfig) -> tuple[int, int]:
    """Side of the training crops, and the number of classes of the set that has such crops."""
    side = getattr(config.train_data.settings, "crop", 32)
    if side not in IMAGES:
        needed = f"a crop of {', '.join(map(str, IMAGES))} pixels"
        raise InputError(f"config {config.filename}", found=f"train_data.crop = {side}", needed=needed)
    return side, 10 if side == 32 else 1000
