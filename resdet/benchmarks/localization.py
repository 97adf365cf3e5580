"""What a step of the per-class localizer costs as its classes grow: an image asks for one of them, whatever K is."""

from __future__ import annotations

import statistics
import time
from typing import NamedTuple

import torch

from resdet.benchmarks.footprint import MemoryMeter
from resdet.benchmarks.stations import wait
from resdet.benchmarks.workers import Worker
from resdet.engine.optim import build_optimizer
from resdet.engine.settings import Optimizer
from resdet.localization.build import per_class_rpn_localizer
from resdet.structures import Target

CLASSES = (10, 100, 1000)
CROP = 224


class LocalizerCost(NamedTuple):
    """Of a training step."""

    classes: int
    parameters: int
    """All that are trained."""
    loss_seconds: float
    """Forward and backward."""
    update_seconds: float
    """Of the weights: of all classes, since momentum and weight decay move those of absent ones too."""
    memory: float
    """GiB that a step adds for as long as it takes, beside the weights, their gradients and their momentum."""


class LocalizerJob:
    """A localizer in a process of its own (:mod:`.workers`).

    Args:
        backbone: of the registry.
        classes: K.
        batch_size: crops.
        threads: of torch; None for its own choice.
    """

    def __init__(self, backbone: str, classes: int, batch_size: int, threads: int | None) -> None:
        if threads:
            torch.set_num_threads(threads)
        torch.manual_seed(0)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        net = per_class_rpn_localizer(backbone=backbone, num_classes=classes, crop=CROP)
        self._net = net.to(device, memory_format=torch.channels_last).train()
        self._optimizer = build_optimizer(self._net, Optimizer(), amp="off", lr=1e-6)
        self._images = [torch.randint(0, 256, (3, CROP, CROP), dtype=torch.uint8) for _ in range(batch_size)]
        box, ignore = torch.tensor([[40.0, 30, 190, 200]]), torch.tensor([False])
        self._targets = [Target(box, torch.tensor([n % classes]), ignore, n, (CROP, CROP)) for n in range(batch_size)]

    def measure(self, runs: int) -> LocalizerCost:
        """Medians of the runs, after one that is not timed."""
        self._step()
        meter = MemoryMeter()
        seconds = [self._step() for _ in range(runs)]
        memory, parameters = meter.read(), sum(p.numel() for p in self._net.parameters() if p.requires_grad)
        loss, update = (statistics.median(column) for column in zip(*seconds, strict=True))
        return LocalizerCost(self._net.num_classes, parameters, loss, update, memory.peak - memory.resting)

    def _step(self) -> tuple[float, float]:
        """Seconds of the losses with their backward pass, and of the update."""
        self._optimizer.zero_grad()
        started = time.perf_counter()
        sum(self._net.loss(self._images, self._targets).values()).backward()
        wait()
        between = time.perf_counter()
        self._optimizer.step()
        wait()
        return between - started, time.perf_counter() - between


def localizer_costs(
    *, backbone: str = "resnet50", batch_size: int = 8, runs: int = 3, threads: int | None = None
) -> list[LocalizerCost]:
    """A row for each of :data:`CLASSES`, each in its own process."""
    rows = []
    for classes in CLASSES:
        with Worker(LocalizerJob, backbone, classes, batch_size, threads) as worker:
            worker.receive()
            rows.append(worker.ask("measure", runs))
    return rows
