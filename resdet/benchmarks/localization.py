"""What a step of the per-class localizer costs as its classes grow: an image asks for one of them, whatever K is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from resdet.benchmarks.jobs import Job, training
from resdet.benchmarks.timing import median_profile
from resdet.benchmarks.workers import Worker
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


COLUMNS = {
    "classes": "{.classes:,}",
    "parameters ": "{.parameters:,}",
    "loss s ": "{.loss_seconds:.2f}",
    "update s": "{.update_seconds:.3f}",
    "GiB  ": "{.memory:.2f}",
}


def localizer_job(backbone: str, classes: int, batch_size: int) -> Job:
    """A localizer and random crops with a box each."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = per_class_rpn_localizer(backbone=backbone, num_classes=classes, crop=CROP)
    net = net.to(device, memory_format=torch.channels_last).train()
    images = [torch.randint(0, 256, (3, CROP, CROP), dtype=torch.uint8) for _ in range(batch_size)]
    box, ignore = torch.tensor([[40.0, 30, 190, 200]]), torch.tensor([False])
    targets = [Target(box, torch.tensor([n % classes]), ignore, n, (CROP, CROP)) for n in range(batch_size)]
    return training(net, lambda: net.loss(images, targets), plain=True)  # which keeps its gradients, as resting memory


def localizer_costs(
    *, backbone: str = "resnet50", batch_size: int = 8, runs: int = 3, threads: int | None = None
) -> Iterator[LocalizerCost]:
    """A row for each of :data:`CLASSES`, each in its own process: medians of the runs, after one that is not timed."""
    for classes in CLASSES:
        with Worker(localizer_job, backbone, classes, batch_size, threads=threads) as worker:
            worker.built().ask("profile")
            worker.ask("rest")
            spent = median_profile([worker.ask("profile") for _ in range(runs)])
            memory, update = worker.ask("memory"), spent.pop("optimizer")
            parameters = worker.ask("parameters")
        yield LocalizerCost(classes, parameters, sum(spent.values()), update, memory.peak - memory.resting)
