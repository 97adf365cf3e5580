"""Training from a config: what ``tools/train_det.py``, ``train_cls.py`` and ``train_loc.py`` do."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from mmengine.evaluator import Evaluator
from mmengine.hooks import EMAHook

from resdet.backbones.weights import load_exactly
from resdet.datasets.detection import DetectionDataset
from resdet.datasets.folder import FolderDataset
from resdet.datasets.headers import WHOLE, check_files, check_folder
from resdet.engine import distributed
from resdet.engine.ahead import FilesSeen
from resdet.engine.checkpoints import read_checkpoint
from resdet.engine.compiled import compile_parts, use_winograd_in_training
from resdet.engine.config import ExperimentConfig
from resdet.engine.evaluate import evaluate
from resdet.engine.experiment import Experiment, build_experiment, check_start, test_loader, train_loader
from resdet.engine.hooks import Checkpoints, ErrorWarmup, FiniteLoss, Progress, StepSeed
from resdet.engine.optim import build_optimizer, build_schedulers, in_steps
from resdet.engine.record import Recorder
from resdet.engine.runner import EvaluationLoop, ResdetRunner, StepLoop
from resdet.engine.settings import Schedule
from resdet.engine.signals import StopOnSignal
from resdet.engine.tasks.base import with_trained_backbone
from resdet.errors import InputError
from resdet.evaluation.report import provenance, write_json
from resdet.files import held, remove_strays


def train(
    config: ExperimentConfig,
    *,
    work_dir: str | Path,
    launcher: str = "none",
    resume: str | None = None,
    auto_scale_lr: bool = False,
    overwrite: bool = False,
    check: bool = False,
) -> dict[str, float]:
    """Train, and write last.pth, best.pth, logs and metrics.json.

    Args:
        config: checked.
        work_dir: folder of everything that is written.
        launcher: none, pytorch, slurm or mpi.
        resume: a checkpoint, or ``"auto"`` for last.pth of ``work_dir`` where there is one.
        auto_scale_lr: scale the learning rate by the batch really used.
        overwrite: begin anew in a ``work_dir`` that holds another run.
        check: look at all files first, and not at those of the training set beside the first steps.

    Returns:
        Metrics of the last validation; none without any.

    Raises:
        InputError: for whatever the user got wrong, and for a loss that is not finite.
    """
    distributed.start(launcher, timeout=config.run.start_timeout)
    work_dir = Path(work_dir)
    experiment, resume = prepare(config, work_dir=work_dir, resume=resume, overwrite=overwrite)
    config = experiment.config
    check_pictures(experiment, training=check)
    with alone(work_dir):
        runner, checkpoints, endings = build_runner(
            experiment, work_dir=work_dir, launcher=launcher, auto_scale_lr=auto_scale_lr
        )
        if resume is not None:
            runner._resume, runner._load_from = True, resume
        try:
            runner.train()
        finally:
            for end in endings:
                end()
        metrics = checkpoints.figures
        if distributed.rank() == 0:
            record = provenance(config.filename, work_dir / "last.pth", seed=runner.seed, config_text=config.text)
            record["images_left_out"] = getattr(experiment.test_set, "left_out", 0)
            write_json(work_dir / "metrics.json", {"figures": metrics, "classes": experiment.classes, **record})
        config.task.published(experiment, work_dir, metrics, evaluate)
    return metrics


def prepare(
    config: ExperimentConfig, *, work_dir: Path, resume: str | None, overwrite: bool
) -> tuple[Experiment, str | None]:
    """What a training starts with: its experiment, and the checkpoint that it goes on from.

    Args:
        config: as for :func:`train`.
        work_dir: likewise, and the rest too.
        resume: likewise.
        overwrite: likewise.

    Raises:
        InputError: another run is there, or as :func:`build_experiment`.
    """
    if resume is None and not overwrite and (work_dir / "last.pth").exists():
        needed = "--resume to go on with it, another --work-dir, or --overwrite to begin anew"
        raise InputError(f"work dir {work_dir}", found="last.pth of another run", needed=needed)
    if resume == "auto":
        resume = str(work_dir / "last.pth") if (work_dir / "last.pth").exists() else None
    if resume is not None and getattr(config.model.settings, "fallback", None):
        config = with_trained_backbone(config, read_checkpoint(resume)["meta"])
    experiment = build_experiment(config, load_init=resume is None)
    if config.load_from and resume is None:
        load_trained(experiment, config.load_from)
    elif resume is None:
        check_start(experiment)
    return experiment, resume


def check_pictures(experiment: Experiment, *, training: bool) -> None:
    """Refuse files that will stop a run: of the validation images of data with boxes, with ``training`` of all.

    Raises:
        InputError: as :func:`resdet.datasets.headers.check_files`.
    """
    if distributed.rank():
        return
    sets = [(experiment.test_set, "validation images"), *[(experiment.train_set, "training images")] * training]
    for data, what in sets:
        if isinstance(data, DetectionDataset):
            check_files(data.annotations, what, whole=training or len(data) <= WHOLE)
        elif isinstance(data, FolderDataset) and training:
            check_folder(data.index, what)


@contextmanager
def alone(work_dir: Path) -> Iterator[None]:
    """Two runs in one folder would write over each other's checkpoints. What a killed one has left goes."""
    with ExitStack() as stack:
        if not distributed.rank():
            try:
                stack.enter_context(held(work_dir))
                remove_strays(work_dir)
            except BlockingIOError as error:
                needed = "another --work-dir, or the end of that run"
                raise InputError(f"work dir {work_dir}", found="a run that is going on there", needed=needed) from error
        yield


def train_seeds(
    configs: Mapping[int, ExperimentConfig],
    *,
    work_dir: str | Path,
    launcher: str = "none",
    resume: str | None = None,
    auto_scale_lr: bool = False,
    overwrite: bool = False,
    check: bool = False,
) -> dict[str, tuple[float, float]]:
    """One training after the other, each in ``seed<n>/`` of the work dir; writes ``seeds.json``.

    Args:
        configs: the config for each seed.
        work_dir: folder of everything that is written.
        launcher: as for :func:`train`.
        resume: None, or ``"auto"``: finished trainings are only tested again.
        auto_scale_lr: as for :func:`train`.
        overwrite: likewise.
        check: likewise.

    Returns:
        Mean and standard deviation of each figure over the seeds (0 for one seed).

    Raises:
        InputError: as :func:`train`; a checkpoint to resume, which could be of one seed only.
    """
    if resume not in (None, "auto"):
        raise InputError("--resume with --seeds", found=resume, needed="--resume alone: each seed has its own last.pth")
    options = {"launcher": launcher, "resume": resume, "auto_scale_lr": auto_scale_lr, "overwrite": overwrite}
    options["check"] = check
    runs = {s: train(config, work_dir=Path(work_dir) / f"seed{s}", **options) for s, config in configs.items()}
    names = [name for name, value in next(iter(runs.values())).items() if isinstance(value, float)]
    values = {name: [run[name] for run in runs.values()] for name in names}
    summary = {k: (statistics.fmean(v), statistics.stdev(v) if len(v) > 1 else 0.0) for k, v in values.items()}
    if distributed.rank() == 0:
        first = next(iter(configs.values()))
        record = provenance(first.filename, None, config_text=first.text)
        content = {"mean_and_deviation": summary, "runs": runs, **record}
        write_json(Path(work_dir) / "seeds.json", content)
    return summary


def build_runner(
    experiment: Experiment, *, work_dir: Path, launcher: str, auto_scale_lr: bool
) -> tuple[ResdetRunner, Checkpoints, tuple[Callable[[], None], ...]]:
    """Mmengine's Runner over the experiment, the hook with the results, and what is called at the end of all."""
    config = experiment.config
    optimizer, schedule, run, loader = config.optimizer, config.schedule, config.run, config.loader
    batches = train_loader(experiment)
    steps = batches.batch_sampler.steps_per_epoch
    total, short = (in_steps(schedule.length, each, steps) for each in (schedule, schedule.updated(least_steps=0)))
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
    if run.winograd:
        use_winograd_in_training(experiment.net, distributed.device())
    optim = build_optimizer(experiment.adapter, optimizer, amp=run.amp, lr=lr)
    if not schedule.validate_last and validate_every >= total and config.publish.checkpoint == "best":
        needed = "a validation: schedule.validate_last=True, or validate_every below the length; or the last checkpoint"
        raise InputError("publish.checkpoint", found="'best' of a run that never validates", needed=needed)
    checkpoints = Checkpoints(
        every=checkpoint_every, score=experiment.metric.higher_is_better, patience=run.early_stopping
    )
    progress = Progress(every=run.log_every, batch_size=loader.batch_size)
    stop = StopOnSignal(checkpoints, accumulate=unit)
    said = (*config.said, *["--auto-scale-lr"] * auto_scale_lr)
    record = Recorder(config, score=experiment.metric.higher_is_better, overrides=said)
    seen = _files_seen(experiment)
    hooks: list[Any] = [StepSeed(), FiniteLoss(at_once=run.sync_check), progress, checkpoints, record, stop, *seen]
    hooks += [_warmup(config, schedule)] if schedule.warmup_error is not None else []
    hooks += [EMAHook(momentum=1 - run.ema)] if run.ema is not None else []
    runner = ResdetRunner(
        config=config,
        classes=experiment.classes,
        data=experiment.test_set,
        model=experiment.adapter,
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
        custom_hooks=[*hooks, *(dict(hook) for hook in config.custom_hooks)],
        launcher=launcher,
    )
    if short < total:
        runner.logger.info(f"schedule.least_steps: {total} steps, as schedule.length={schedule.length:g} is {short}")
    return runner, checkpoints, (progress.stop, stop.restore, *(hook.stop for hook in seen))


def _files_seen(experiment: Experiment) -> list[FilesSeen]:
    """The look at the files before they are needed, in one process."""
    if not isinstance(experiment.train_set, DetectionDataset) or distributed.rank() != 0:
        return []
    sets = [experiment.train_set, *([experiment.test_set] if len(experiment.test_set) > WHOLE else [])]
    return [FilesSeen([each.annotations for each in sets])]


def _warmup(config: ExperimentConfig, schedule: Schedule) -> ErrorWarmup:
    """The warm-up that the training error ends.

    Raises:
        InputError: another task, another policy, or no bound.
    """
    if config.task.name != "classification" or schedule.policy != "step":
        found = f"task {config.task.name!r}, {schedule.policy!r}"
        needed = "a classification config with schedule.policy='step'"
        raise InputError("schedule.warmup_error", found=found, needed=needed)
    if not schedule.warmup_steps:
        needed = "schedule.warmup_steps, at which it ends whatever the error"
        raise InputError("schedule.warmup_error", found="no bound", needed=needed)
    return ErrorWarmup(factor=schedule.warmup_factor, error=schedule.warmup_error, steps=schedule.warmup_steps)


def load_trained(experiment: Experiment, path: str) -> None:
    """Start from a detector or classifier already trained (``load_from``), perhaps on other classes.

    The layers that give one output per class are taken over only when the classes are the same. A net with context may
    start from one without (:meth:`resdet.engine.tasks.detection.Detection.fitted`).

    Raises:
        InputError: the checkpoint is of another architecture.
    """
    checkpoint = read_checkpoint(path)
    backbone = checkpoint["meta"].get("model", {}).get("backbone")  # strides may differ where weights fit
    own = experiment.config.model.settings.backbone
    if backbone not in (None, own):
        needed = f"model.backbone={own} of the config; or change that"
        raise InputError(f"load_from {path}", found=f"model.backbone={backbone}", needed=needed)
    same = tuple(checkpoint["meta"]["classes"]) == experiment.classes
    free = () if same else experiment.config.task.class_layers
    state = {k: v for k, v in checkpoint["state_dict"].items() if not any(fnmatch(k, pattern) for pattern in free)}
    state = experiment.config.task.fitted(state, experiment.adapter)
    load_exactly(experiment.adapter, state, source=path, allowed_missing=free)
