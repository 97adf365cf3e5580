"""mmengine's Runner, with what its 0.10 line lacks: plain and atomic checkpoints, exact resume, CPU processes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.evaluator import Evaluator
from mmengine.model import MMDistributedDataParallel
from mmengine.runner import IterBasedTrainLoop, Runner
from mmengine.runner.base_loop import BaseLoop
from torch import nn

from resdet import __version__
from resdet.backbones.stochastic_depth import RandomResidual
from resdet.backbones.weights import load_exactly, read_weights
from resdet.engine import distributed
from resdet.engine.config import differences
from resdet.engine.optim import autocast
from resdet.engine.progress import shown
from resdet.errors import InputError


class StepLoop(IterBasedTrainLoop):
    """Training by steps. A resumed run starts its loader at its step instead of reading every batch before it.

    Args:
        runner: the runner.
        dataloader: over an endless batch sampler with a settable ``first_step``.
        max_iters: steps in all.
        val_interval: steps between validations.
        val_last: whether one follows the last step.
    """

    def __init__(
        self, runner: Runner, dataloader: Any, max_iters: int, val_interval: int, val_last: bool = True
    ) -> None:
        BaseLoop.__init__(self, runner, dataloader)
        self._max_iters, self._max_epochs = max_iters, 1
        self._iter = self._epoch = 0
        self.val_begin, self.val_interval, self.val_last = 1, val_interval, val_last
        self.stop_training = False  # set by mmengine's EarlyStoppingHook

    def run(self) -> nn.Module:
        """Train."""
        runner = self.runner
        runner.call_hook("before_train")
        runner.call_hook("before_train_epoch")
        self.dataloader.batch_sampler.first_step = self._iter
        batches = iter(self.dataloader)
        # A resumed run may lack its last validation.
        if runner.val_loop is not None and self._iter >= self._max_iters and self.val_last:
            runner.val_loop.run()
        try:
            while self._iter < self._max_iters and not self.stop_training:
                runner.model.train()
                self.run_iter(next(batches))
                due = self.val_last if self._iter == self._max_iters else self._iter % self.val_interval == 0
                if runner.val_loop is not None and due:
                    runner.val_loop.run()
        finally:
            if runner.val_loop is not None:  # its loader processes wait for the next validation
                runner.val_loop.dataloader._iterator = None
        runner.call_hook("after_train_epoch")
        runner.call_hook("after_train")
        return runner.model


class EvaluationLoop(BaseLoop):
    """Validation: each process predicts its share, the metric joins them.

    Args:
        runner: the runner.
        dataloader: this process's share of the test set.
        evaluator: mmengine's, around one of :mod:`resdet.engine.metrics`.
    """

    def __init__(self, runner: Runner, dataloader: Any, evaluator: Evaluator) -> None:
        super().__init__(runner, dataloader)
        self.evaluator = evaluator

    def run(self) -> dict[str, float]:
        """Validate."""
        runner = self.runner
        runner.call_hook("before_val")
        runner.call_hook("before_val_epoch")
        runner.model.eval()
        for buffer in runner.model.buffers():  # trained BN statistics differ; rank 0's are those that are saved
            distributed.copy_from_first(buffer)
        total = len(self.dataloader.batch_sampler)
        for batch in shown(self.dataloader, total, "validating", say=runner.logger.info):
            with torch.no_grad(), autocast(runner.amp):
                outputs = runner.model.val_step(batch)
            self.evaluator.process(data_samples=outputs, data_batch=batch)
        figures = self.evaluator.evaluate(len(self.dataloader.dataset))
        runner.call_hook("after_val_epoch", metrics=figures)
        runner.call_hook("after_val")
        return figures


class ResdetRunner(Runner):
    """The Runner of every tool here.

    Its checkpoints hold tensors, numbers and texts only, so reading one never runs code from it.
    """

    def __init__(self, *, extra_meta: dict, amp: str, **settings: Any) -> None:
        super().__init__(**settings)
        self.extra_meta = extra_meta  # what every checkpoint tells besides the step: task, classes, config
        self.amp = amp

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Move to the device; with several processes, wrap for them, on GPUs or CPUs."""
        device = distributed.device()
        model = model.to(device, memory_format=torch.channels_last)
        if not self.distributed:
            return model
        ids = None if device.type == "cpu" else [device.index]
        skips = any(isinstance(module, RandomResidual) for module in model.modules())  # other blocks on each process
        return MMDistributedDataParallel(
            module=model, device_ids=ids, broadcast_buffers=False, find_unused_parameters=skips
        )

    def _log_env(self, env_cfg: dict) -> None:
        """One line in place of mmengine's page."""
        device = (
            torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
        )
        self.logger.info(
            f"resdet {__version__}, torch {torch.__version__}, {device}, "
            f"{self.world_size} process(es), seed {self.seed}"
        )

    def get_hooks_info(self) -> str:
        """The names of the hooks, in order."""
        return " ".join(type(hook).__name__ for hook in self._hooks)

    def save_checkpoint(self, out_dir: str, filename: str, *, meta: dict) -> None:
        """Write a checkpoint whole or not at all.

        Raises:
            InputError: the disk refuses, or a weight is not finite; the file that was there before stays.
        """
        net = self.model.module if self.distributed else self.model
        checkpoint = {
            "meta": {**self.extra_meta, **meta, "seed": self.seed, "version": __version__},
            "state_dict": {k: v.detach().cpu() for k, v in net.state_dict().items()},
            "optimizer": self.optim_wrapper.state_dict(),
            "schedulers": [s.state_dict() for s in self.param_schedulers or []],
        }
        self.call_hook("before_save_checkpoint", checkpoint=checkpoint)
        bad = [name for name, value in checkpoint["state_dict"].items() if not torch.isfinite(value).all()]
        if bad:
            raise InputError(
                f"training, step {meta['step']}",
                found=f"weights that are not finite: {', '.join(bad[:3])}{', ...' if len(bad) > 3 else ''}",
                needed="weights that do not diverge (nothing was saved): a lower optimizer.lr, or clip_norm=10",
            )
        if distributed.rank() == 0:
            write_checkpoint(Path(out_dir) / filename, checkpoint)

    def resume(
        self,
        filename: str,
        resume_optimizer: bool = True,
        resume_param_scheduler: bool = True,
        map_location: Any = "cpu",
    ) -> None:
        """Go on from a checkpoint as if the run had never stopped."""
        checkpoint = read_checkpoint(filename)
        if "optimizer" not in checkpoint:
            raise InputError(filename, found="weights without an optimizer", needed="a last.pth or best.pth of a run")
        wanted = self.extra_meta
        check_same(filename, checkpoint["meta"], classes=wanted["classes"], model=wanted["model"])
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        net = self.model.module if self.distributed else self.model
        load_exactly(net, checkpoint["state_dict"], source=filename)
        try:
            self.optim_wrapper.load_state_dict(checkpoint["optimizer"])
            for scheduler, state in zip(self.param_schedulers or [], checkpoint["schedulers"], strict=True):
                scheduler.load_state_dict(state)
        except ValueError as error:  # other frozen stages, or a schedule of other parts
            needed = "the config that it was trained with, or a run from its start"
            raise InputError(f"resuming {filename}", found=str(error), needed=needed) from error
        self.train_loop._iter = checkpoint["meta"]["step"]
        self._has_loaded = True
        self.logger.info(f"resumed {filename} at step {self.train_loop.iter}")


def write_checkpoint(path: Path, checkpoint: dict) -> None:
    """Write beside the file, then move into its place.

    Raises:
        InputError: the disk refuses.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        kept = f"{path} as it was stays" if path.exists() else "nothing was written"
        raise InputError(f"saving {path}", found=f"{error} ({kept})", needed="space on the disk") from error
    finally:
        beside.unlink(missing_ok=True)


def read_checkpoint(path: str | Path) -> dict:
    """A checkpoint of a run, read without unpickling objects.

    Raises:
        InputError: no such file, damaged, or of another program.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"checkpoint {path}", found="no such file", needed="a .pth of a run") from error
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"checkpoint {path}", found=reason, needed=_needed_for(path)) from error
    meta = checkpoint.get("meta") if isinstance(checkpoint, dict) else None
    if not isinstance(meta, dict) or "classes" not in meta or "state_dict" not in checkpoint:
        raise InputError(f"checkpoint {path}", found="no state_dict with meta", needed=_needed_for(path))
    return checkpoint


def _needed_for(path: str | Path) -> str:
    """What is needed in the place of a file that is no checkpoint of ours; of another program's detector, how to."""
    try:
        state, _ = read_weights(path)
    except InputError:
        state = {}
    if not any("rpn" in key for key in state):
        return "a .pth of a run of this program"
    ours = Path("work_dirs") / f"{Path(path).stem}.pth"
    return (
        f"what `python tools/convert.py {path} {ours}` makes of another program's detector; "
        "configs/converted_coco.py tests it"
    )


def check_same(source: object, meta: dict, *, classes: Sequence[str] | None = None, model: dict | None = None) -> None:
    """Refuse a checkpoint that was trained for other classes, or with other settings that its weights do not show.

    Args:
        source: its path.
        meta: what it says.
        classes: those of the data.
        model: :func:`resdet.engine.config.describe_model` of the config.

    Raises:
        InputError: they differ.
    """
    where = f"checkpoint {source}"
    if classes is not None and list(meta["classes"]) != list(classes):
        raise InputError(where, found=_listed(meta["classes"]), needed=f"{_listed(classes)}, as the data has")
    trained = meta.get("model", model)
    if model is not None and (changed := differences(trained, model)):
        raise InputError(
            where,
            found="trained with " + ", ".join(f"model.{k}={was}" for k, (was, _) in changed.items()),
            needed=", ".join(f"model.{k}={now}" for k, (_, now) in changed.items()) + " of the config; or change that",
        )


def _listed(classes: Sequence[str]) -> str:
    return f"{len(classes)} classes ({', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''})"
