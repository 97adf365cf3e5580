"""Steps of a training that change nothing: the memory and the time they take, and how many images fit into one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import fmean, median
from typing import Any

import numpy as np
import torch

from resdet.benchmarks.footprint import MemoryMeter, free_memory
from resdet.cpu.memory import give_back
from resdet.datasets.detection import DetectionDataset
from resdet.datasets.loading import collate
from resdet.datasets.views import collate_views
from resdet.detection.faster_rcnn import FasterRCNN
from resdet.detection.preprocess import resized
from resdet.engine.experiment import Experiment, test_loader
from resdet.engine.optim import autocast
from resdet.engine.runner import ResdetRunner
from resdet.errors import InputError

SECONDS = 60.0
"""After which no further step, and no further test batch, is timed, once there are three of them."""
STEPS = 5
"""That are timed, besides those whose batches were read ahead."""
TEST_BATCHES = 8
LEAST = 2
"""Images of the smallest trial: batch normalization of a last map of one cell needs two."""
SHARE = 0.9
"""Of the free memory that a batch may take; the rest is for loader processes and for what grows on the way."""


def largest_that_fits(fits: Callable[[int], bool], start: int, most: int) -> int:
    """The largest batch by trial, to an eighth of it: doubling as long as it fits, then halving the gap.

    Args:
        fits: tries a size.
        start: which is known to fit; 0: none is.
        most: no larger ones are tried.
    """
    good, bad = min(start, most), None
    while good < most and (bad is None or bad - good > max(1, good // 8)):
        size = min(max(1, 2 * good), most) if bad is None else (good + bad) // 2
        if fits(size):
            good = size
        else:
            bad = size
    return good


def largest_by_growth(needs: Mapping[int, float], room: float, most: int) -> int:
    """The largest batch from what two or more sizes need: on a straight line through the smallest and the largest.

    Args:
        needs: batch size to memory.
        room: memory, in the same unit.
        most: no larger ones.
    """
    small, large = min(needs), max(needs)
    growth = (needs[large] - needs[small]) / (large - small)
    if growth <= 0:  # the batches are too small to be seen
        return most if needs[large] <= room else 0
    return int(min(most, max(0, large + (room - needs[large]) / growth)))


def memory_and_largest(trial: Trial, batch_size: int) -> tuple[float, int]:
    """GiB of a step, and the largest batch that fits.

    Raises:
        InputError: the batch of the config does not.
    """
    most = len(trial.experiment.train_set)
    if torch.cuda.is_available():
        meter = MemoryMeter()
        whole = trial.fits(batch_size)
        memory = meter.read().peak
        largest = largest_that_fits(trial.fits, batch_size if whole else 0, max(most, batch_size))
        room = torch.cuda.get_device_properties(0).total_memory / 2**30
    else:
        room, least = SHARE * free_memory(), min(LEAST, batch_size)
        told: dict[int, tuple[float, float]] = {}
        for size in sorted({least, 2 * least, batch_size}):
            if len(told) > 1 and largest_by_growth(_first(told), room, size) < size:
                break  # the system would end the process
            told[size] = trial.memory(size)
        whole, memory = batch_size in told, told.get(batch_size, (0.0, 0.0))[1]
        largest = largest_by_growth(_first(told), room, max(most, batch_size))
    if not whole:
        found = f"{batch_size}, for which {room:.1f} GiB are not enough"
        smaller = f"at most {largest}, with --auto-scale-lr" if largest else "a larger machine"
        needed = f"{smaller}; --amp, model.checkpoint=True or a smaller input take less"
        raise InputError("loader.batch_size", found=found, needed=needed)
    return memory, largest


def _first(told: Mapping[int, tuple[float, float]]) -> dict[int, float]:
    return {size: need for size, (need, _) in told.items()}


class Trial:
    """Steps of a training that change nothing.

    Args:
        experiment: what is trained.
        runner: of a training that was not begun.
    """

    def __init__(self, experiment: Experiment, runner: ResdetRunner) -> None:
        self.experiment, self.runner = experiment, runner
        self._steps, self._samples = 0, []
        optimizer = runner.optim_wrapper
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        least = min(LEAST, experiment.config.loader.batch_size)
        optimizer.initialize_count_status(runner.model, 0, runner.max_iters)
        for _ in range(experiment.config.optimizer.accumulate):  # up to an update: the optimizer takes memory, too
            if not self.fits(least):
                found = f"{least} of the largest images, which do not fit into the GPU's memory"
                needed = "a smaller net or input, --amp, or model.checkpoint=True"
                raise InputError(f"config {experiment.config.filename}", found=found, needed=needed)

    def step(self, batch: Any) -> None:
        """Forward, backward, and an update with a learning rate of 0, to its end on the device."""
        self.runner.model.train()
        torch.manual_seed(self.runner.seed + self._steps)
        self._steps += 1
        self.runner.model.train_step(batch, optim_wrapper=self.runner.optim_wrapper)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def largest(self, count: int) -> Any:
        """A batch of the images whose inputs are the largest, some of them again where there are not so many."""
        data, settings = self.experiment.train_set, self.experiment.config.model.settings
        order = np.arange(len(data))
        if isinstance(data, DetectionDataset):
            hw, side = data.hw.astype(float), getattr(settings, "shorter_side", None)
            if side is not None:
                most = side if isinstance(side, int) else max(side)
                hw = np.array([resized(tuple(each), most, settings.longer_side, settings.rounding) for each in data.hw])
            order = np.argsort(-hw.prod(1), kind="stable")
        for place in range(len(self._samples), count):
            self._samples.append(data[(int(order[place % len(order)]), place)])
        samples = self._samples[:count]
        return collate(samples) if isinstance(data, DetectionDataset) else collate_views(samples)

    def fits(self, count: int) -> bool:
        """Whether the GPU has the memory for a step of so many of the largest images."""
        batch = self.largest(count)
        try:
            with self._largest_side():
                self.step(batch)
            return True
        except torch.OutOfMemoryError:
            pass  # what its frames hold goes at the end of this block
        finally:
            self.runner.optim_wrapper.zero_grad()
        torch.cuda.empty_cache()
        return False

    def memory(self, count: int) -> tuple[float, float]:
        """GiB that a step of so many of the largest images takes on a CPU: beyond what was held before, and in all."""
        batch = self.largest(count)
        give_back()
        meter = MemoryMeter()
        with self._largest_side():
            self.step(batch)
        used = meter.read()
        return used.peak - used.resting, used.peak

    def speeds(self) -> tuple[float, float, float]:
        """Images/s of the loader alone, images/s of the steps alone, and seconds of a step with the loader."""
        settings = self.experiment.config.loader
        size, ahead = settings.batch_size, 2 * settings.workers  # batches that a DataLoader reads ahead
        batches = iter(self.runner.train_loop.dataloader)
        next(batches)  # its processes start
        reads = _timed(lambda: next(batches), max(3, 3 * settings.workers))
        steps: list[float] = []

        def read_and_step() -> None:
            batch = next(batches)
            began = time.perf_counter()
            self.step(batch)
            steps.append(time.perf_counter() - began)

        together = _timed(read_and_step, ahead + STEPS)
        settled = together[min(ahead, len(together) - 3) :]
        return size / fmean(reads), size / median(steps), fmean(settled)

    def validation(self) -> float:
        """Seconds of a validation, from batches spread evenly over the test set; the untrained net's."""
        loader = test_loader(self.experiment, most=TEST_BATCHES)
        batches = iter(loader)
        self.runner.model.eval()
        images = []

        def test() -> None:
            batch = next(batches)
            images.append(len(batch[0]))
            with torch.no_grad(), autocast(self.runner.amp):
                self.runner.model.val_step(batch)
            if torch.cuda.is_available():
                torch.cuda.synchronize()

        seconds = _timed(test, len(loader))
        first = 1 if len(seconds) > 1 else 0  # the first is slower
        return len(self.experiment.test_set) * sum(seconds[first:]) / sum(images[first:])

    @contextmanager
    def _largest_side(self) -> Iterator[None]:
        """Detectors that draw the size of their inputs take the largest."""
        net = self.experiment.net
        if not isinstance(net, FasterRCNN):
            yield
            return
        sides = net.preprocess.shorter_side
        net.preprocess.shorter_side = (max(sides),)
        try:
            yield
        finally:
            net.preprocess.shorter_side = sides


def _timed(work: Callable[[], Any], times: int) -> list[float]:
    """Seconds of each call; fewer calls than asked where they take too long."""
    seconds: list[float] = []
    began = time.perf_counter()
    while len(seconds) < times and (len(seconds) < 3 or time.perf_counter() - began < SECONDS):
        before = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - before)
    return seconds
