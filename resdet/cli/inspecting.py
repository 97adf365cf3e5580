"""``tools/check_data.py`` and ``browse.py``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from resdet.cli.arguments import MANY
from resdet.cli.data import add_data, config_of
from resdet.cli.running import run


def check_data(arguments: Sequence[str] | None = None) -> None:
    """``tools/check_data.py``."""
    parser = argparse.ArgumentParser(
        description="All that is wrong with a detection data set: images, boxes, classes, copies, leakage, anchors. "
        "Exit code 1 if training would refuse it."
    )
    _add_data(parser)
    parser.add_argument("--json", metavar="FILE", help="write the findings as JSON")
    parser.add_argument("--fix", metavar="OUT", help="write a repaired set (COCO form, images linked) into this folder")
    args = parser.parse_args(arguments)
    _check(parser, args)

    def main() -> None:
        from resdet.errors import InputError
        from resdet.evaluation.report import write_json
        from resdet.inspection.check import check, repair, table

        config = _config(args)
        findings, splits = check(config)
        print(table(findings))
        if args.json:
            write_json(args.json, [finding._asdict() for finding in findings])
        if args.fix:
            repair(splits, Path(args.fix), print)
        if errors := [finding for finding in findings if finding.severity == "error"]:
            found = f"{len(errors)} kinds of errors, the first: {errors[0].count} {errors[0].what}"
            raise InputError(f"data {args.data or args.config}", found=found, needed="what stands behind each arrow")

    run(main, choose_threads=False)


def browse(arguments: Sequence[str] | None = None) -> None:
    """``tools/browse.py``."""
    parser = argparse.ArgumentParser(
        description="A contact sheet of samples as the net will see them: augmented, resized, boxes drawn."
    )
    _add_data(parser)
    parser.add_argument("--split", choices=("train", "val"), default="train", help="default: train, with augmentation")
    parser.add_argument("--classes", **MANY, default=[], metavar="NAME", help="images with objects of these")
    parser.add_argument("--size", choices=("small", "medium", "large"), help="images with objects of this size")
    parser.add_argument("--count", type=int, default=16, metavar="N", help="samples (default: 16)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of draw and augmentation (default: 0)")
    parser.add_argument("--out", default="samples.png", metavar="FILE", help="default: samples.png")
    args = parser.parse_args(arguments)
    _check(parser, args)
    if args.count < 1 or args.seed < 0:
        parser.error(f"--count {args.count} --seed {args.seed}: at least 1, and at least 0")

    def main() -> None:
        from resdet.inspection.browse import write_sheets

        how = {name: getattr(args, name) for name in ("split", "count", "seed", "classes", "size")}
        print(f"-> {write_sheets(_config(args), out=Path(args.out), **how)}", file=sys.stdout)

    run(main, choose_threads=False)


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", nargs="?", help="a file of configs/; not needed with --data")
    add_data(parser)
    parser.add_argument("--cfg-options", **MANY, default=[], metavar="KEY=VALUE", help="override the config")


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.config is None and args.data is None:
        parser.error("give a CONFIG, --data FOLDER, or both")


def _config(args: argparse.Namespace):
    from resdet.errors import InputError

    config = config_of(args.config, args.data, args.cfg_options)
    if config.task.name != "detection":
        raise InputError(f"config {config.filename}", found=f"task = {config.task.name!r}", needed="a detection config")
    return config
