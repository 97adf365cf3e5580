"""``tools/train_det.py``, ``train_cls.py`` and ``train_loc.py``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from resdet.cli.arguments import MANY, add_common, options
from resdet.cli.data import add_data, config_of, work_dir_of
from resdet.cli.running import run


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
    add("--check", action="store_true", help="look at the headers of all training files first")
    add("--amp", action="store_true", help="mixed precision: bfloat16 (run.amp=fp16 for float16)")
    explained = "scale optimizer.lr by loader.batch_size x optimizer.accumulate / optimizer.batch_size"
    add("--auto-scale-lr", action="store_true", help=explained)
    add("--seeds", type=int, **MANY, metavar="N", help="one training for each, then mean and standard deviation")
    args = parser.parse_args(arguments)
    if args.config is None and args.data is None:
        parser.error("give a CONFIG, --data FOLDER, or both")

    def main() -> None:
        from resdet.engine.train import train as run_training
        from resdet.engine.train import train_seeds
        from resdet.errors import InputError

        config = config_of(args.config, args.data, options(args))
        if task not in (None, config.task.name):
            needed = f"{task!r}, or {config.task.tool}"
            raise InputError(f"config {config.filename}", found=f"task = {config.task.name!r}", needed=needed)
        how = {name: getattr(args, name) for name in ("launcher", "resume", "auto_scale_lr", "overwrite", "check")}
        if not args.seeds:
            run_training(config, work_dir=work_dir_of(args), **how)
            return
        configs = {seed: config_of(args.config, args.data, [*options(args), f"run.seed={seed}"]) for seed in args.seeds}
        for name, (mean, deviation) in train_seeds(configs, work_dir=work_dir_of(args), **how).items():
            print(f"{name:<16} {mean:.4f} ± {deviation:.4f}  over {len(configs)} seeds")

    run(main)
