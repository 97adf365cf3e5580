"""mmengine's Runner, with what its 0.10 line lacks: plain and atomic checkpoints, exact resume, CPU processes."""

from __future__ import annotations

import importlib.util
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.model import MMDistributedDataParallel
from mmengine.runner import IterBasedTrainLoop, Runner
from mmengine.runner.base_loop import BaseLoop
from torch import nn
from torch.utils.data import Dataset

from resdet.backbones.stochastic_depth import RandomResidual
from resdet.backbones.weights import load_exactly
from resdet.engine import distributed
from resdet.engine.checkpoints import check_same, read_checkpoint, write_checkpoint
from resdet.engine.extensions import check_installed
from resdet.engine.optim import autocast
from resdet.engine.progress import shown
from resdet.engine.resume import changes, follow, rates_of, settings_of
from resdet.errors import InputError, listed
from resdet.version import __version__

if TYPE_CHECKING:
    from resdet.engine.config import ExperimentConfig
    from resdet.engine.experiment import Experiment


LOCAL = {"vis_backends": [{"type": "LocalVisBackend"}]}
"""Files of the work dir. An evaluation knows nothing else: it is no run of its own at W&B or MLflow."""


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
        self.validated = -1  # step of the last validation, as the checkpoints say

    def run(self) -> nn.Module:
        """Train."""
        runner = self.runner
        runner.call_hook("before_train")
        runner.call_hook("before_train_epoch")
        self.dataloader.batch_sampler.first_step = self._iter
        batches = iter(self.dataloader)
        if self._iter and self._validation_is_due():  # the run that is resumed ended before it
            runner.val_loop.run()
        try:
            while self._iter < self._max_iters and not self.stop_training:
                if not runner.model.training:  # train() calls each of a net's layers
                    runner.model.train()
                self.run_iter(next(batches))
                if self._validation_is_due():
                    runner.val_loop.run()
        finally:
            if runner.val_loop is not None:  # its loader processes wait for the next validation
                runner.val_loop.dataloader._iterator = None
        runner.call_hook("after_train_epoch")
        runner.call_hook("after_train")
        return runner.model

    def _validation_is_due(self) -> bool:
        if self.runner.val_loop is None or self.validated == self._iter:
            return False
        return self.val_last if self._iter >= self._max_iters else self._iter % self.val_interval == 0


class EvaluationLoop(BaseLoop):
    """Validation and test: each process predicts its share, the metric joins them.

    Args:
        runner: the runner.
        dataloader: this process's share of the test set.
        evaluator: mmengine's, around one of :mod:`resdet.engine.metrics`.
        stage: which hook points are called.
    """

    def __init__(
        self, runner: Runner, dataloader: Any, evaluator: Evaluator, stage: Literal["val", "test"] = "val"
    ) -> None:
        super().__init__(runner, dataloader)
        self.evaluator, self.stage = evaluator, stage

    def run(self) -> dict[str, float]:
        """Validate or test."""
        runner, stage = self.runner, self.stage
        runner.call_hook(f"before_{stage}")
        runner.call_hook(f"before_{stage}_epoch")
        runner.model.eval()
        for buffer in runner.model.buffers():  # trained BN statistics differ; rank 0's are those that are saved
            distributed.copy_from_first(buffer)
        for index, batch in enumerate(self._shown()):
            runner.call_hook(f"before_{stage}_iter", batch_idx=index, data_batch=batch)
            with torch.no_grad(), autocast(runner.amp):
                outputs = runner.model.val_step(batch)
            self.evaluator.process(data_samples=outputs, data_batch=batch)
            runner.call_hook(f"after_{stage}_iter", batch_idx=index, data_batch=batch, outputs=outputs)
        metrics = self.evaluator.evaluate(len(self.dataloader.dataset))
        runner.call_hook(f"after_{stage}_epoch", metrics=metrics)
        runner.call_hook(f"after_{stage}")
        return metrics

    def _shown(self) -> Iterable:
        """The batches, with a word now and then of how many there were: in the log of a training, else on stderr."""
        total = len(self.dataloader.batch_sampler)
        if self.stage == "test":
            return shown(self.dataloader, total)
        return shown(self.dataloader, total, "validating", say=self.runner.logger.info)


class ResdetRunner(Runner):
    """The Runner of every tool here.

    Its checkpoints hold tensors, numbers and texts only, so reading one never runs code from it.

    Args:
        config: of the run.
        classes: K names.
        data: the test set.
        settings: of mmengine's Runner.
    """

    def __init__(self, *, config: ExperimentConfig, classes: Sequence[str], data: Dataset, **settings: Any) -> None:
        self.config, self.amp = config, config.run.amp
        self.extra_meta = {  # of every checkpoint
            "task": config.task.name,
            "classes": list(classes),
            "model": config.describe_model(),
            "config": config.text,
            **config.task.facts(config, data),
        }
        trains = settings.get("optim_wrapper") is not None
        if trains:
            self.extra_meta["settings"] = settings_of(config, settings["optim_wrapper"])
        super().__init__(
            env_cfg={"mp_cfg": {"mp_start_method": "fork", "opencv_num_threads": 0}},
            randomness={"seed": config.run.seed},
            experiment_name=f"{Path(config.filename).stem}_{uuid.uuid4().hex[:6]}",
            default_hooks=dict.fromkeys(("runtime_info", "timer", "sampler_seed", "logger", "checkpoint")),
            visualizer={"type": "Visualizer", **(visualizer_of(config) if trains else LOCAL)},
            cfg=Config(dict(config.given), filename=config.filename),
            **settings,
        )

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Move to the device; with several processes, wrap for them, on GPUs or CPUs."""
        device = distributed.device()
        model = model.to(device, memory_format=torch.channels_last)
        if not self.distributed or self._train_loop is None:
            return model
        ids = None if device.type == "cpu" else [device.index]
        skips = any(isinstance(module, RandomResidual) for module in model.modules())  # other blocks on each process
        return MMDistributedDataParallel(
            module=model, device_ids=ids, broadcast_buffers=False, find_unused_parameters=skips
        )

    def _init_model_weights(self) -> None:
        """Nothing: nets come initialised, and mmengine would log each of their weights."""

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
        }
        self.call_hook("before_save_checkpoint", checkpoint=checkpoint)
        bad = [name for name, value in checkpoint["state_dict"].items() if not torch.isfinite(value).all()]
        if bad:
            raise InputError(
                f"training, step {meta['step']}",
                found=f"weights that are not finite: {listed(bad, shown=3)}",
                needed="weights that do not diverge (nothing was saved): a lower optimizer.lr, or clip_norm=10",
            )
        if distributed.rank() == 0:
            write_checkpoint(Path(out_dir) / filename, checkpoint)
        self.call_hook("after_save_checkpoint", checkpoint=checkpoint)  # ours: what counts is what was written

    def resume(
        self,
        filename: str,
        resume_optimizer: bool = True,
        resume_param_scheduler: bool = True,
        map_location: Any = "cpu",
    ) -> None:
        """Go on from a checkpoint as if the run had never stopped, and had always had the settings that it has now."""
        checkpoint = read_checkpoint(filename)
        if "optimizer" not in checkpoint:
            raise InputError(filename, found="weights without an optimizer", needed="a last.pth or best.pth of a run")
        wanted = self.extra_meta
        check_same(filename, checkpoint["meta"], classes=wanted["classes"], model=(wanted["model"], self.config.model))
        step, said = checkpoint["meta"]["step"], checkpoint["meta"].get("settings", {})
        changed = changes(filename, said, wanted["settings"])
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        net = self.model.module if self.distributed else self.model
        load_exactly(net, checkpoint["state_dict"], source=filename)
        rates = rates_of(self.optim_wrapper)
        try:
            self.optim_wrapper.load_state_dict(checkpoint["optimizer"])
        except ValueError as error:  # other frozen stages
            needed = f"the config that it was trained with; or, in another --work-dir, load_from={filename}"
            raise InputError(f"resuming {filename}", found=str(error), needed=needed) from error
        follow(self.optim_wrapper, rates, self.param_schedulers or [], min(step, self.max_iters))
        self.train_loop._iter = step
        self._has_loaded = True
        self.logger.info(f"resumed {filename} at step {step}")
        if changed:
            self.logger.warning(
                "\n  ".join(["settings have changed; from here on those of the config apply:", *changed])
            )


def build_test_runner(experiment: Experiment, loader: Any, *, work_dir: Path, launcher: str) -> ResdetRunner:
    """A Runner whose ``test()`` gives the metrics of an experiment.

    Args:
        experiment: with trained weights.
        loader: this process's share of its test set.
        work_dir: folder of the log.
        launcher: none, pytorch, slurm or mpi.
    """
    config = experiment.config
    return ResdetRunner(
        config=config,
        classes=experiment.classes,
        data=experiment.test_set,
        model=experiment.adapter,
        work_dir=str(work_dir),
        test_dataloader=loader,
        test_cfg={"type": EvaluationLoop, "stage": "test"},
        test_evaluator=Evaluator([experiment.metric]),
        custom_hooks=[dict(hook) for hook in config.custom_hooks],
        launcher=launcher,
        log_level="WARNING",
    )


def visualizer_of(config: ExperimentConfig) -> dict[str, Any]:
    """The backends of section ``visualizer``, or local files and what ``run.tensorboard`` adds.

    Raises:
        InputError: the package of one of them is not installed.
    """
    if config.visualizer is not None:
        check_installed(config.visualizer)
        return dict(config.visualizer)
    if config.run.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise InputError("run.tensorboard", found="no package tensorboard", needed='pip install "resdet[tensorboard]"')
    return {
        "vis_backends": [{"type": "LocalVisBackend"}, *[{"type": "TensorboardVisBackend"}] * config.run.tensorboard]
    }
