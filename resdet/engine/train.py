"""Training from a config: what ``tools/train_det.py`` and ``tools/train_cls.py`` do."""

from __future__ import annotations

import importlib.util
import statistics
import uuid
import warnings
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.hooks import EMAHook

from resdet.backbones.statistics import compute_batchnorm_statistics
from resdet.backbones.weights import load_exactly, publish
from resdet.datasets.loading import EvaluationShare
from resdet.engine import distributed
from resdet.engine.compiled import compile_parts
from resdet.engine.config import describe_model, read_settings
from resdet.engine.evaluate import evaluate
from resdet.engine.experiment import Experiment, build_experiment, check_start, test_loader, train_loader
from resdet.engine.hooks import Checkpoints, ErrorWarmup, FiniteLoss, Progress, StepSeed
from resdet.engine.optim import build_optimizer, build_schedulers, in_steps
from resdet.engine.runner import EvaluationLoop, ResdetRunner, StepLoop, read_checkpoint
from resdet.errors import InputError
from resdet.evaluation.report import provenance, write_json

CLASS_LAYERS = {
    "detection": ("*.class_logits.*", "*.box_deltas.*"),
    "classification": ("net.net.fc.*", "net.net.classifier.6.*"),
    "localization": ("net.rpn.objectness.*", "net.rpn.deltas.*", "net.scores.*", "net.deltas.*"),
}
"""Layers with one output per class, by task."""


def train(
    config: Config,
    *,
    work_dir: str | Path,
    launcher: str = "none",
    resume: str | None = None,
    auto_scale_lr: bool = False,
) -> dict[str, float]:
    """Train, and write last.pth, best.pth, logs and metrics.json.

    Args:
        config: checked.
        work_dir: folder of everything that is written.
        launcher: none, pytorch, slurm or mpi.
        resume: a checkpoint, or ``"auto"`` for last.pth of ``work_dir`` where there is one.
        auto_scale_lr: scale the learning rate by the batch really used.

    Returns:
        Figures of the last validation; none without any.

    Raises:
        InputError: for whatever the user got wrong, and for a loss that is not finite.
    """
    distributed.start(launcher)
    work_dir = Path(work_dir)
    if resume == "auto":
        resume = str(work_dir / "last.pth") if (work_dir / "last.pth").exists() else None
    experiment = build_experiment(config, training=True, load_init=resume is None)
    if config.get("load_from") and resume is None:
        load_trained(experiment, config.load_from)
    elif resume is None:
        check_start(experiment)
    runner, checkpoints, progress = build_runner(
        experiment, work_dir=work_dir, launcher=launcher, auto_scale_lr=auto_scale_lr
    )
    if resume is not None:
        runner._resume, runner._load_from = True, resume
    try:
        runner.train()
    finally:
        progress.stop()
    figures = checkpoints.figures
    if distributed.rank() == 0:
        record = provenance(config.filename, work_dir / "last.pth", seed=runner.seed, config_text=config.pretty_text)
        write_json(work_dir / "metrics.json", {"figures": figures, "classes": experiment.classes, **record})
    if config.task == "classification":
        publish_classifier(experiment, work_dir, figures)
    return figures


def train_seeds(
    configs: Mapping[int, Config],
    *,
    work_dir: str | Path,
    launcher: str = "none",
    resume: str | None = None,
    auto_scale_lr: bool = False,
) -> dict[str, tuple[float, float]]:
    """One training after the other, each in ``seed<n>/`` of the work dir; writes ``seeds.json``.

    Args:
        configs: the config for each seed.
        work_dir: folder of everything that is written.
        launcher: as for :func:`train`.
        resume: None, or ``"auto"``: finished trainings are only tested again.
        auto_scale_lr: as for :func:`train`.

    Returns:
        Mean and standard deviation of each figure over the seeds (0 for one seed).

    Raises:
        InputError: as :func:`train`; a checkpoint to resume, which could be of one seed only.
    """
    if resume not in (None, "auto"):
        raise InputError("--resume with --seeds", found=resume, needed="--resume alone: each seed has its own last.pth")
    options = {"launcher": launcher, "resume": resume, "auto_scale_lr": auto_scale_lr}
    runs = {s: train(config, work_dir=Path(work_dir) / f"seed{s}", **options) for s, config in configs.items()}
    names = [name for name, value in next(iter(runs.values())).items() if isinstance(value, float)]
    values = {name: [run[name] for run in runs.values()] for name in names}
    summary = {k: (statistics.fmean(v), statistics.stdev(v) if len(v) > 1 else 0.0) for k, v in values.items()}
    if distributed.rank() == 0:
        first = next(iter(configs.values()))
        record = provenance(first.filename, None, config_text=first.pretty_text)
        content = {"mean_and_deviation": summary, "runs": runs, **record}
        write_json(Path(work_dir) / "seeds.json", content)
    return summary


def build_runner(
    experiment: Experiment, *, work_dir: Path, launcher: str, auto_scale_lr: bool
) -> tuple[ResdetRunner, Checkpoints, Progress]:
    """Mmengine's Runner over the experiment, and the two hooks that the caller asks for results."""
    config = experiment.config
    optimizer, schedule, run, loader = (read_settings(config, s) for s in ("optimizer", "schedule", "run", "loader"))
    batches = train_loader(experiment)
    steps = batches.batch_sampler.steps_per_epoch
    total = in_steps(schedule.length, schedule, steps)
    unit = optimizer.accumulate  # a checkpoint between two updates would lose the gradients so far
    checkpoint_every, validate_every = (
        -(-number // unit) * unit
        for number in (run.checkpoint_every, in_steps(schedule.validate_every, schedule, steps))
    )
    used = loader.batch_size * optimizer.accumulate
    lr = optimizer.lr * used / optimizer.batch_size if auto_scale_lr else optimizer.lr
    if unit > 1:  # the rate is set at each step, so first before the first update, which mmengine finds suspicious
        warnings.filterwarnings("ignore", "Detected call of `scheduler.step", UserWarning)
    compile_parts(experiment.net, run.compile)
    optim = build_optimizer(experiment.task, optimizer, amp=run.amp, lr=lr)
    if not schedule.validate_last and validate_every >= total and read_settings(config, "publish").checkpoint == "best":
        needed = "a validation: schedule.validate_last=True, or validate_every below the length; or the last checkpoint"
        raise InputError("publish.checkpoint", found="'best' of a run that never validates", needed=needed)
    checkpoints = Checkpoints(
        every=checkpoint_every, score=experiment.metric.higher_is_better, patience=run.early_stopping
    )
    progress = Progress(every=run.log_every, batch_size=loader.batch_size)
    hooks: list[Any] = [StepSeed(), FiniteLoss(at_once=run.sync_check), progress, checkpoints]
    if schedule.warmup_error is not None:
        if config.task != "classification" or schedule.policy != "step":
            needed = "a classification config with schedule.policy='step'"
            raise InputError("schedule.warmup_error", found=f"task {config.task!r}, {schedule.policy!r}", needed=needed)
        if not schedule.warmup_steps:
            needed = "schedule.warmup_steps, at which it ends whatever the error"
            raise InputError("schedule.warmup_error", found="no bound", needed=needed)
        warmup = {"factor": schedule.warmup_factor, "error": schedule.warmup_error, "steps": schedule.warmup_steps}
        hooks.append(ErrorWarmup(**warmup))
    if run.ema is not None:
        hooks.append(EMAHook(momentum=1 - run.ema))
    if run.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise InputError("run.tensorboard", found="no package tensorboard", needed='pip install "resdet[tensorboard]"')
    backends = [{"type": "LocalVisBackend"}] + [{"type": "TensorboardVisBackend"}] * run.tensorboard
    mine = ("runtime_info", "timer", "sampler_seed", "logger", "checkpoint")
    runner = ResdetRunner(
        extra_meta={
            "task": config.task,
            "classes": list(experiment.classes),
            "model": describe_model(config),
            "config": config.pretty_text,
        },
        amp=run.amp,
        model=experiment.task,
        work_dir=str(work_dir),
        train_dataloader=batches,
        val_dataloader=test_loader(experiment, kept=True),
        train_cfg={
            "type": StepLoop,
            "max_iters": total,
            "val_interval": min(total, validate_every),
            "val_last": schedule.validate_last,
        },
        val_cfg={"type": EvaluationLoop},
        val_evaluator=Evaluator([experiment.metric]),
        optim_wrapper=optim,
        param_scheduler=build_schedulers(optim, schedule, steps) or None,
        default_hooks=dict.fromkeys(mine),
        custom_hooks=hooks,
        launcher=launcher,
        env_cfg={"mp_cfg": {"mp_start_method": "fork", "opencv_num_threads": 0}},
        randomness={"seed": run.seed},
        visualizer={"type": "Visualizer", "vis_backends": backends},
        experiment_name=f"{Path(config.filename).stem}_{uuid.uuid4().hex[:6]}",
        cfg=config,
    )
    return runner, checkpoints, progress


def load_trained(experiment: Experiment, path: str) -> None:
    """Start from a detector or classifier already trained (``load_from``), perhaps on other classes.

    The layers that give one output per class are taken over only when the classes are the same.

    Raises:
        InputError: the checkpoint is of another architecture.
    """
    checkpoint = read_checkpoint(path)
    backbone = checkpoint["meta"].get("model", {}).get("backbone")  # strides may differ where weights fit
    if backbone not in (None, experiment.config.model.get("backbone")):
        needed = f"model.backbone={experiment.config.model.get('backbone')} of the config; or change that"
        raise InputError(f"load_from {path}", found=f"model.backbone={backbone}", needed=needed)
    same = tuple(checkpoint["meta"]["classes"]) == experiment.classes
    free = () if same else CLASS_LAYERS[experiment.config.task]
    state = {k: v for k, v in checkpoint["state_dict"].items() if not any(fnmatch(k, pattern) for pattern in free)}
    load_exactly(experiment.task, state, source=path, allowed_missing=free)


def publish_classifier(experiment: Experiment, work_dir: Path, figures: dict[str, float]) -> None:
    """Appendix A's step between the two tasks: BN statistics over the training set, then frozen for detection.

    A checkpoint gets them, is tested once more, and becomes ``<backbone>.safetensors``. ``metrics.json`` holds both the
    figures of the last step and those of what was published.
    """
    config = experiment.config
    distributed.wait()  # for rank 0, which writes it
    source = work_dir / f"{read_settings(config, 'publish').checkpoint}.pth"
    load_exactly(experiment.task, read_checkpoint(source)["state_dict"], source=source)
    device = next(experiment.task.parameters()).device
    images = compute_batchnorm_statistics(experiment.net, _statistics_batches(experiment), device=device)
    published = evaluate(experiment)
    name = config.model.get("backbone")
    facts = {
        "backbone": name,
        "classes": list(experiment.classes),
        "figures": published,
        "checkpoint": source.name,
        "statistics_images": images,
        "config": config.pretty_text,
    }
    if distributed.rank() == 0:
        path = publish(work_dir / f"{name}.safetensors", experiment.net.net.state_dict(), facts)
        record = provenance(
            config.filename, path, seed=read_settings(config, "run").seed, config_text=config.pretty_text
        )
        write_json(
            work_dir / "metrics.json",
            {
                "figures": figures,
                "published": published,
                "classes": experiment.classes,
                "statistics_images": images,
                **record,
            },
        )
    distributed.wait()


def _statistics_batches(experiment: Experiment):
    """Images of the training set as they are trained on, spread evenly over it and over the processes."""
    data, settings = experiment.train_set, read_settings(experiment.config, "loader")
    limit = read_settings(experiment.config, "publish").statistics_images
    count = len(data) if limit is None else min(limit, len(data))
    rows = torch.linspace(0, len(data) - 1, count).long().tolist()
    share = EvaluationShare(count, 64, rank=distributed.rank(), world=distributed.world_size())
    picked = torch.utils.data.Subset(data, rows)
    loader = torch.utils.data.DataLoader(picked, batch_sampler=share, num_workers=settings.workers)
    for images, _ in loader:
        yield images
