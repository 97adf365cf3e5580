"""``--overfit N``: a net that cannot learn a few pictures by heart will not learn the rest."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.hooks import Hook
from mmengine.runner import Runner

from resdet.engine.config import ExperimentConfig
from resdet.engine.experiment import Experiment, assemble, check_start
from resdet.engine.optim import in_steps
from resdet.engine.record import read_record
from resdet.engine.train import alone, build_runner, load_trained
from resdet.errors import InputError

STEPS = 400
"""At most, unless ``schedule.length`` is said on the command line."""
VALIDATIONS = 20
TARGETS = {"coco/AP": ("coco/AP50", 0.9), "voc/mAP": ("voc/mAP", 0.9), "top1": ("top1", 0.95)}
"""By the figure that tells the best checkpoint: the figure that is looked at here, and from where on it will do. An IoU
of 0.5 tells whether labels and net fit together; the last pixels take much longer."""
FALLING = 0.9
"""A loss that in the last quarter is below this share of the quarter before is still falling."""
FLAT = 0.7
"""One that ends above this share of its beginning has hardly fallen."""


class Overfit(NamedTuple):
    """How well some pictures were learnt by heart."""

    images: int
    steps: int
    """Done."""
    score: str
    """The figure that was looked at."""
    value: float
    target: float
    fits: bool
    """Labels and net fit together: the value has come to the target."""
    first_loss: float
    """Mean over the first tenth of the steps."""
    last_loss: float
    """Mean over the last tenth."""
    falling: bool
    """Whether the loss was still falling at the end."""
    seconds: float
    figures: dict[str, float]
    folder: str


class Enough(Hook):
    """Ends a training when a figure will do, and keeps its losses.

    Args:
        score: the figure.
        target: which will do.
    """

    priority = "LOW"

    def __init__(self, score: str, target: float) -> None:
        self.score, self.target = score, target
        self.losses: list[float] = []

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Keep the loss."""
        self.losses.append(float(outputs["loss"].detach()))

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """End it."""
        if (metrics or {}).get(self.score, 0.0) >= self.target:
            runner.train_loop.stop_training = True


def overfit(
    config: ExperimentConfig, images: int, *, work_dir: str | Path, auto_scale_lr: bool = False, overwrite: bool = False
) -> Overfit:
    """Train on a few training images without augmentation, and validate on the same ones.

    Args:
        config: checked.
        images: how many, drawn by ``run.seed``.
        work_dir: of the training that is to come. It is left alone: what is written goes to ``<work_dir>_overfit``.
        auto_scale_lr: as for :func:`resdet.engine.train.train`.
        overwrite: take ``<work_dir>_overfit`` even where it holds another run than such a one.

    Raises:
        InputError: as :func:`resdet.engine.train.train`; fewer images than asked; a task that has no such trial.
    """
    folder = Path(work_dir).with_name(f"{Path(work_dir).name}_overfit")
    if not overwrite:
        _check_folder(folder)
    config, train_set, test_set = config.task.few(config, images)
    score = config.task.metric(config, test_set).higher_is_better
    config = few_steps(config, images, enough=TARGETS[score])
    experiment = assemble(config, train_set, test_set, load_init=True)
    if config.load_from:
        load_trained(experiment, config.load_from)
    else:
        check_start(experiment)
    began = time.perf_counter()
    with alone(folder):
        runner, figures = _train(experiment, folder, auto_scale_lr)
    name, target = TARGETS[score]
    losses = next(hook for hook in runner.hooks if isinstance(hook, Enough)).losses
    tenth, value = max(1, len(losses) // 10), figures[name]
    return Overfit(
        images,
        len(losses),
        name,
        value,
        target,
        value >= target,
        sum(losses[:tenth]) / tenth,
        sum(losses[-tenth:]) / tenth,
        still_falling(losses),
        time.perf_counter() - began,
        figures,
        str(folder),
    )


def verdict(config: ExperimentConfig, found: Overfit) -> str:
    """In words that labels and net fit together.

    Raises:
        InputError: they do not; what that means, and what may help.
    """
    told = f"{found.score} {found.value:.3f} on {found.images} training images after {found.steps} steps"
    fell = f"loss from {found.first_loss:.3g} to {found.last_loss:.3g}"
    if found.fits:
        return f"labels and net fit together: {told} ({fell}); {found.target:g} was asked for"
    if found.falling:
        needed = f"more steps, as the loss is still falling: --cfg-options schedule.length={2 * found.steps} "
        needed += "schedule.unit=step"
    elif found.last_loss > FLAT * found.first_loss:
        needed = "a loss that falls: another optimizer.lr (10 times more, or less), fewer frozen stages, model.init"
    else:
        looks = "tools/check_data.py and tools/browse.py" if config.task.name == "detection" else "the images"
        needed = f"labels that can be learnt: look at {looks} for wrong boxes or classes, and for objects that are too "
        needed += f"small at the net's input or unlike its anchors; and at what {found.folder}/last.pth answers"
    where = f"config {config.filename}: labels and net do not fit together yet"
    raise InputError(where, found=f"{told} ({fell})", needed=f"{found.target:g}; {needed}")


def few_steps(config: ExperimentConfig, images: int, *, enough: tuple[str, float]) -> ExperimentConfig:
    """The config for a short training at one rate, with many validations and no records elsewhere."""
    batch_size = min(images, config.loader.batch_size)
    said = any(option.startswith("schedule.length=") for option in config.said)
    steps = in_steps(config.schedule.length, config.schedule, -(-images // batch_size)) if said else STEPS
    every = max(1, steps // VALIDATIONS)
    optimizer = config.optimizer
    return replace(
        config,
        said=(f"--overfit {images}", *config.said),
        loader=config.loader.updated(batch_size=batch_size),
        optimizer=optimizer.updated(accumulate=1, clip_norm=optimizer.clip_norm or 10.0),
        schedule=config.schedule.updated(
            length=steps,
            unit="step",
            least_steps=0,
            policy="step",
            milestones=(),
            warmup_error=None,
            warmup_steps=min(config.schedule.warmup_steps, steps // 10),
            validate_every=every,
            validate_last=True,
        ),
        run=config.run.updated(
            ema=None, early_stopping=None, tensorboard=False, log_every=every, checkpoint_every=steps
        ),
        visualizer=None,
        custom_hooks=(*config.custom_hooks, {"type": Enough, "score": enough[0], "target": enough[1]}),
    )


def still_falling(losses: list[float]) -> bool:
    """Whether the last quarter of some losses is clearly below the quarter before."""
    quarter = len(losses) // 4
    if not quarter:
        return True
    before, last = losses[-2 * quarter : -quarter], losses[-quarter:]
    return sum(last) < FALLING * sum(before)


def _train(experiment: Experiment, folder: Path, auto_scale_lr: bool) -> tuple[Runner, dict[str, float]]:
    runner, checkpoints, endings = build_runner(
        experiment, work_dir=folder, launcher="none", auto_scale_lr=auto_scale_lr
    )
    try:
        runner.train()
    finally:
        for end in endings:
            end()
    return runner, checkpoints.figures


def _check_folder(folder: Path) -> None:
    """Refuse a folder with another run.

    Raises:
        InputError: there is one.
    """
    if not (folder / "last.pth").exists():
        return
    try:
        own = any(text.startswith("--overfit ") for text in read_record(folder).overrides)
    except InputError:
        own = False
    if not own:
        needed = "another --work-dir, or --overwrite"
        raise InputError(f"work dir {folder}", found="last.pth of a run without --overfit", needed=needed)
