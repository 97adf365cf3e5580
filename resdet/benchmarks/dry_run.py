"""``--dry-run``: everything that a training needs, a few of its steps, and what the whole of it will take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch

from resdet.benchmarks.trial import Trial, memory_and_largest
from resdet.engine.config import ExperimentConfig
from resdet.engine.progress import clock
from resdet.engine.runner import visualizer_of
from resdet.engine.train import build_runner, check_pictures, prepare


class DryRun(NamedTuple):
    """What a dry run found."""

    training_images: int
    validation_images: int
    batch_size: int
    """Images of a step."""
    device: str
    memory: float
    """GiB that a step with the largest images takes at its peak: of the GPU, or of this process in all."""
    step_speed: float
    """Images/s of the steps alone."""
    loader_speed: float
    """Images/s of the loader alone."""
    seconds_per_step: float
    """With the loader."""
    steps: int
    """Left to do."""
    validations: int
    seconds_per_validation: float
    hours: float
    """Of all steps and validations."""
    largest_batch: int
    """That fits, not above the number of training images."""


def dry_run(
    config: ExperimentConfig,
    *,
    work_dir: str | Path,
    resume: str | None = None,
    overwrite: bool = False,
    auto_scale_lr: bool = False,
) -> DryRun:
    """Look at all pictures as ``--check`` does, build all that a training needs, and time a few steps of it.

    Nothing is written, and weights stay as they are: the learning rate is 0.

    Args:
        config: checked.
        work_dir: of the training; only looked at.
        resume: as for :func:`resdet.engine.train.train`.
        overwrite: likewise.
        auto_scale_lr: likewise.

    Raises:
        InputError: for whatever would stop the training; or its batch does not fit.
    """
    experiment, resume = prepare(config, work_dir=Path(work_dir), resume=resume, overwrite=overwrite)
    check_pictures(experiment, training=True)
    config = experiment.config
    visualizer_of(config)  # whose packages are there
    quiet = replace(config, visualizer=None, run=config.run.updated(tensorboard=False))
    experiment = experiment._replace(config=quiet)
    with TemporaryDirectory() as nowhere:
        runner, _, _ = build_runner(experiment, work_dir=Path(nowhere), launcher="none", auto_scale_lr=auto_scale_lr)
        loop = runner.train_loop
        if resume is not None:
            runner.resume(resume)
        trial = Trial(experiment, runner)
        memory, largest = memory_and_largest(trial, config.loader.batch_size)
        loader_speed, step_speed, seconds = trial.speeds()
        seconds_per_validation = trial.validation()
    steps = max(0, loop.max_iters - runner.iter)
    validations = validations_between(runner.iter, loop.max_iters, every=loop.val_interval, last=loop.val_last)
    return DryRun(
        len(experiment.train_set),
        len(experiment.test_set),
        config.loader.batch_size,
        torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        memory,
        step_speed,
        loader_speed,
        seconds,
        steps,
        validations,
        seconds_per_validation,
        (steps * seconds + validations * seconds_per_validation) / 3600,
        largest,
    )


def summary(found: DryRun) -> str:
    """What a dry run found, for a terminal."""
    gpu = found.device != "CPU"
    place = f"of {found.device}" if gpu else "in this process"
    whole, together = clock(found.hours * 3600), found.batch_size / found.seconds_per_step
    bound = "" if found.largest_batch < found.training_images else ", all training images"
    return "\n".join(
        (
            f"data        {found.training_images} training and {found.validation_images} validation images, "
            "all looked at",
            f"memory      {found.memory:.2f} GiB {place} for a step of the {found.batch_size} largest images",
            f"step        {found.step_speed:.2f} images/s",
            f"loader      {found.loader_speed:.2f} images/s",
            f"together    {together:.2f} images/s, {found.seconds_per_step:.3f} s a step",
            f"validation  {clock(found.seconds_per_validation)}, {found.validations} times",
            f"length      {found.hours:.2f} hours ({whole}) for {found.steps} steps with their validations",
            f"batch       at most {found.largest_batch} images fit{bound}",
        )
    )


def validations_between(done: int, total: int, *, every: int, last: bool) -> int:
    """Validations after step ``done`` of a run of ``total`` steps: every so many steps, and after the last."""
    if done >= total:
        return 0
    return (total - 1) // every - done // every + last
