"""``tools/train_det.py``, ``train_cls.py`` and ``train_loc.py``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from resdet.cli.arguments import MANY, add_common, at_least, options
from resdet.cli.data import add_data, config_of, work_dir_of
from resdet.cli.running import run

if TYPE_CHECKING:
    from resdet.engine.config import ExperimentConfig


def train_any(arguments: Sequence[str] | None = None) -> None:
    """``resdet train``."""
    train(None, "Train a detector, a classifier or a localizer from a config.", arguments)


def train(task: str | None, description: str, arguments: Sequence[str] | None = None) -> None:
    """``tools/train_det.py``, ``tools/train_cls.py`` and ``tools/train_loc.py``; without a task whatever it is."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("config", nargs="?", help="a file of configs/; not needed with --data")
    add_data(parser)
    add_common(parser)
    add = parser.add_argument
    explained = "go on from a checkpoint; without a file from last.pth of the work dir, if there is one"
    add("--resume", nargs="?", const="auto", metavar="CHECKPOINT", help=explained)
    add("--overwrite", action="store_true", help="begin anew in a work dir that holds another run")
    add("--check", action="store_true", help="look at all training and validation files first")
    add("--amp", action="store_true", help="mixed precision: bfloat16 (run.amp=fp16 for float16)")
    explained = "scale optimizer.lr by loader.batch_size x optimizer.accumulate / optimizer.batch_size"
    add("--auto-scale-lr", action="store_true", help=explained)
    explained = (
        "only look at all data, make a few steps, and tell memory, speed, length and largest batch; writes nothing"
    )
    add("--dry-run", action="store_true", help=explained)
    explained = "train on N images without augmentation, validate on them, say whether labels and net fit together"
    add("--overfit", type=at_least(1), metavar="N", help=explained)
    add("--json", metavar="FILE", help="write what --dry-run or --overfit found as JSON")
    add("--seeds", type=int, **MANY, metavar="N", help="one training for each, then mean and standard deviation")
    args = parser.parse_args(arguments)
    if args.config is None and args.data is None:
        parser.error("give a CONFIG, --data FOLDER, or both")
    _check(parser, args)

    def main() -> None:
        from resdet.engine.train import train as run_training
        from resdet.engine.train import train_seeds
        from resdet.errors import InputError

        config = config_of(args.config, args.data, options(args))
        if task not in (None, config.task.name):
            needed = f"{task!r}, or {config.task.tool}"
            raise InputError(f"config {config.filename}", found=f"task = {config.task.name!r}", needed=needed)
        if args.dry_run:
            _dry_run(config, args)
            return
        if args.overfit:
            _overfit(config, args)
            return
        how = {name: getattr(args, name) for name in ("launcher", "resume", "auto_scale_lr", "overwrite", "check")}
        if not args.seeds:
            run_training(config, work_dir=work_dir_of(args), **how)
            return
        configs = {seed: config_of(args.config, args.data, [*options(args), f"run.seed={seed}"]) for seed in args.seeds}
        for name, (mean, deviation) in train_seeds(configs, work_dir=work_dir_of(args), **how).items():
            print(f"{name:<16} {mean:.4f} ± {deviation:.4f}  over {len(configs)} seeds")

    run(main)


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse flags that say nothing beside each other."""
    if args.dry_run and (args.seeds or args.launcher != "none"):
        parser.error("--dry-run is of one training in one process: no --seeds, no --launcher")
    if args.overfit and (args.dry_run or args.seeds or args.resume or args.check or args.launcher != "none"):
        parser.error("--overfit is a short run in one process: no --dry-run, --seeds, --resume, --check, --launcher")
    if args.json and not (args.dry_run or args.overfit):
        parser.error("--json FILE is for --dry-run and --overfit; a training writes metrics.json")


def _dry_run(config: ExperimentConfig, args: argparse.Namespace) -> None:
    from resdet.benchmarks.dry_run import dry_run, summary
    from resdet.evaluation.report import provenance, write_json

    how = {name: getattr(args, name) for name in ("resume", "overwrite", "auto_scale_lr")}
    found = dry_run(config, work_dir=work_dir_of(args), **how)
    print(summary(found))
    if args.json:
        record = provenance(config.filename, None, seed=config.run.seed, config_text=config.text)
        write_json(args.json, {**found._asdict(), **record})


def _overfit(config: ExperimentConfig, args: argparse.Namespace) -> None:
    from resdet.engine.overfit import overfit, verdict
    from resdet.evaluation.report import provenance, write_json

    how = {name: getattr(args, name) for name in ("overwrite", "auto_scale_lr")}
    found = overfit(config, args.overfit, work_dir=work_dir_of(args), **how)
    if args.json:
        record = provenance(config.filename, None, seed=config.run.seed, config_text=config.text)
        write_json(args.json, {**found._asdict(), **record})
    print(verdict(config, found))
