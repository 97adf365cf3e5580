"""What happens around each step: progress, checkpoints, reproducible randomness, and the stop on a loss gone wrong."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from resdet.engine import distributed
from resdet.engine.progress import clock
from resdet.errors import InputError
from resdet.structures import Target


class StepSeed(Hook):
    """Seeds torch anew before each step from (seed, step, process).

    What a step draws (anchors, regions, scales) then does not depend on how the run got there: a resumed run draws the
    same as one that was never stopped.
    """

    priority = "VERY_HIGH"

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed."""
        torch.manual_seed((runner.seed * 1_000_003 + runner.iter) * 4096 + distributed.rank())


class FiniteLoss(Hook):
    """Stops the run when a loss is NaN or infinite, and says at which step, in which loss and on which images.

    On a GPU it looks one step later, when the device has the value ready, so that it never waits; at steps that write
    a checkpoint, and with ``at_once``, it looks immediately. Weights that a bad step has touched are never saved. With
    several processes all of them stop at that step, since the gradient that they share is bad.
    """

    priority = "HIGH"

    def __init__(self, *, at_once: bool) -> None:
        self.at_once = at_once
        self._pending: tuple[int, dict[str, Tensor], list, Callable[[], bool]] | None = None

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Check the step before, or this one."""
        losses = {k: v.detach() for k, v in outputs.items() if k.startswith("loss") and isinstance(v, Tensor)}
        if self._pending is not None:
            self._check(*self._pending)
        self._pending = (runner.iter + 1, losses, data_batch, _ask(losses["loss"]))
        if self.at_once or not outputs["loss"].is_cuda:
            self.before_save_checkpoint(runner, {})

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Nothing is saved before the last step was seen to be sound."""
        if self._pending is not None:
            self._check(*self._pending)
            self._pending = None

    def _check(self, step: int, losses: dict[str, Tensor], batch: Any, is_sound: Callable[[], bool]) -> None:
        sound = is_sound()
        if distributed.everywhere(sound):
            return
        values = ", ".join(f"{name} = {float(value):g}" for name, value in losses.items())
        targets = batch[1] if isinstance(batch[1], Sequence) else ()
        ids = [target.image_id for target in targets if isinstance(target, Target)]
        images = f", images {ids}" if ids else ""
        raise InputError(
            f"training, step {step}{images}",
            found=f"{values} (another process has a loss that is not finite)" if sound else values,
            needed="finite losses: a lower optimizer.lr, a longer schedule.warmup_steps or optimizer.clip_norm=10",
        )


def _ask(loss: Tensor) -> Callable[[], bool]:
    """Ask now whether a loss is finite; the answer waits only if it is wanted before the device has come so far."""
    sound = torch.isfinite(loss).all()
    if sound.device.type != "cuda":
        return lambda: bool(sound)
    answer = torch.empty((), dtype=torch.bool, pin_memory=True)
    answer.copy_(sound, non_blocking=True)
    there = torch.cuda.Event()
    there.record()

    def look() -> bool:
        there.synchronize()
        return bool(answer)

    return look


class ErrorWarmup(Hook):
    """Holds a small learning rate until the training error falls below a limit (the paper's ResNet-110, section 4.2).

    The error is the mean over the last steps. The warm-up ends at its bound whatever the error, since one that waits
    for a net that does not learn would never end.

    Args:
        factor: share of the rate meanwhile.
        error: the limit, a fraction.
        steps: the bound.
    """

    priority = "LOW"
    WINDOW = 50
    """Steps of the mean: 6,400 images of CIFAR's batches, so that its own noise is below one percent."""

    def __init__(self, *, factor: float, error: float, steps: int) -> None:
        self.factor, self.error, self.steps = factor, error, steps
        self.warming = True
        self._errors: list[float] = []
        self._rates: list[float] = []

    def before_train(self, runner: Runner) -> None:
        """Lower the rate, unless a resumed run is past that."""
        if self.warming:
            self._rates = [group["lr"] for group in runner.optim_wrapper.param_groups]
            for group in runner.optim_wrapper.param_groups:
                group["lr"] *= self.factor

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Raise it when it is time."""
        if not self.warming:
            return
        self._errors = [*self._errors[1 - self.WINDOW :], float(distributed.mean(outputs["error"].detach().float()))]
        mean, done = sum(self._errors) / len(self._errors), runner.iter + 1
        below = len(self._errors) == self.WINDOW and mean < self.error
        if below or done >= self.steps:
            self.warming = False
            for group, rate in zip(runner.optim_wrapper.param_groups, self._rates, strict=True):
                untouched = group["lr"] == rate * self.factor  # by a milestone; a product would not be the rate's bits
                group["lr"] = rate if untouched else group["lr"] / self.factor
            reason = "" if below else f", its bound, and not below {self.error}"
            runner.logger.info(f"step {done}: the warm-up ends at a training error of {mean:.3f}{reason}")

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Remember where it is."""
        checkpoint["meta"]["warmup"] = {"warming": self.warming, "errors": self._errors}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Go on from there."""
        kept = checkpoint["meta"].get("warmup", {"warming": False, "errors": []})
        self.warming, self._errors = kept["warming"], list(kept["errors"])


class Checkpoints(Hook):
    """``last.pth`` every so often and at each validation; ``best.pth`` whenever the score is the best so far.

    Each file is written beside its place and then moved there, so whatever happens one good checkpoint stays.

    Args:
        every: steps between two writings of last.pth.
        score: the figure that tells the best.
        patience: training stops after so many validations in a row without a better score; None: it does not.
    """

    priority = "VERY_LOW"

    def __init__(self, *, every: int, score: str, patience: int | None = None) -> None:
        self.every, self.score, self.patience = every, score, patience
        self.best, self.without_better = -math.inf, 0
        self.figures: dict[str, float] = {}

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Write last.pth."""
        done = runner.iter + 1
        validates = runner.val_loop is not None and done % runner.train_loop.val_interval == 0
        if done % self.every == 0 or validates or done == runner.max_iters:  # a validation that fails costs no step
            self.write(runner, "last.pth", done)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Write best.pth if it is, and last.pth, whose record of the best must not be ahead of best.pth."""
        self.figures = dict(metrics or {})
        runner.train_loop.validated = runner.iter
        score = self.figures.get(self.score, -math.inf)
        is_best = score > self.best
        self.best = max(self.best, score)
        self.without_better = 0 if is_best else self.without_better + 1
        if is_best:
            self.write(runner, "best.pth", runner.iter)
        self.write(runner, "last.pth", runner.iter)
        self._stop_if_enough(runner)

    def write(self, runner: Runner, name: str, done: int) -> None:
        """Write one checkpoint after ``done`` steps."""
        meta = {"step": done, "best": self.best, "without_better": self.without_better, "figures": self.figures}
        meta["validated"] = runner.train_loop.validated
        runner.save_checkpoint(runner.work_dir, name, meta=meta)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Go on from the best score so far."""
        meta = checkpoint["meta"]
        self.best, self.without_better, self.figures = meta["best"], meta["without_better"], meta["figures"]
        runner.train_loop.validated = meta.get("validated", -1)
        if not (Path(runner.work_dir) / "best.pth").exists():  # resumed elsewhere: the next validation writes one
            self.best, runner.train_loop.validated = -math.inf, -1
        self._stop_if_enough(runner)

    def _stop_if_enough(self, runner: Runner) -> None:
        if self.patience is not None and self.without_better >= self.patience:
            runner.train_loop.stop_training = True
            runner.logger.info(f"early stop: {self.without_better} validations without more than {self.best:.4f}")


class Progress(Hook):
    """A live bar with loss, rate, images/s and time left on a terminal; plain lines elsewhere and in the log file."""

    priority = "BELOW_NORMAL"

    def __init__(self, *, every: int, batch_size: int) -> None:
        self.every, self.batch_size = every, batch_size
        self._bar = self._task = None
        self._since, self._steps, self._sum = time.perf_counter(), 0, {}

    def before_train(self, runner: Runner) -> None:
        """Start the clock and the bar."""
        self._since, self._first = time.perf_counter(), time.perf_counter()
        self._first_step = runner.iter
        if sys.stdout.isatty() and distributed.rank() == 0:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, transient=True)
            self._task = self._bar.add_task("", total=runner.max_iters, completed=runner.iter)
            self._bar.start()

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Add up, and report every so many steps."""
        self._steps += 1
        for name, value in outputs.items():
            self._sum[name] = self._sum.get(name, 0) + value.detach()
        done = runner.iter + 1
        if self._bar is not None:
            shown = {} if outputs["loss"].is_cuda else {"description": f"loss {float(outputs['loss'].detach()):.3f}"}
            self._bar.update(self._task, completed=done, **shown)
        if done % self.every and done != runner.max_iters:
            return
        means = distributed.mean(torch.stack([value.float() for value in self._sum.values()]) / self._steps)
        values = dict(zip(self._sum, means.tolist(), strict=True))
        lr = runner.optim_wrapper.get_lr()["lr"][0]
        now = time.perf_counter()
        speed = self._steps * self.batch_size / (now - self._since)
        left = (runner.max_iters - done) * (now - self._first) / (done - self._first_step)
        parts = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        text = f"step {done}/{runner.max_iters}  lr {lr:.2e}  {parts}  {speed:.1f} images/s  {clock(left)} left"
        if self._bar is not None:
            self._bar.update(self._task, description=f"loss {values['loss']:.3f}  lr {lr:.1e}  {speed:.1f} images/s")
        else:
            runner.logger.info(text)
        runner.visualizer.add_scalars({**values, "lr": lr, "images_per_second": speed}, step=done)
        self._since, self._steps, self._sum = now, 0, {}

    def before_val_epoch(self, runner: Runner) -> None:
        """Stop the clock."""
        self._paused = time.perf_counter()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Report the figures of a validation."""
        figures = {k: float(v) for k, v in (metrics or {}).items() if v is not None}
        runner.logger.info(f"step {runner.iter}: " + "  ".join(f"{k} {v:.4f}" for k, v in figures.items()))
        runner.visualizer.add_scalars(figures, step=runner.iter)
        self._since += time.perf_counter() - self._paused

    def after_train(self, runner: Runner) -> None:
        """Take the bar away."""
        self.stop()

    def stop(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
