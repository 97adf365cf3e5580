"""Flags that several tools take, and what they mean as options of a config."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from resdet.engine.config import ExperimentConfig


MANY: dict[str, Any] = {"action": "extend", "nargs": "+"}
"""Of a flag that takes several values; given twice, both count."""


def at_least(least: int) -> Callable[[str], int]:
    """The ``type`` of a flag that takes integers from ``least`` on."""

    def integer(text: str) -> int:
        if (value := int(text)) < least:
            raise argparse.ArgumentTypeError(f"{text}: at least {least}")
        return value

    return integer


def add_common(parser: argparse.ArgumentParser) -> None:
    """Flags that every tool with a config takes."""
    parser.add_argument(
        "--work-dir", metavar="DIR", help="folder of what is written (default: work_dirs/<config name>)"
    )
    parser.add_argument(
        "--cfg-options",
        **MANY,
        default=[],
        metavar="KEY=VALUE",
        help="override the config, as in optimizer.lr=0.01 loader.batch_size=4 model.init=weights.safetensors",
    )
    parser.add_argument(
        "--launcher",
        choices=("none", "pytorch", "slurm", "mpi"),
        default="none",
        help="who started the processes: torchrun (pytorch), srun (slurm) or mpirun (mpi); default none",
    )


def add_test(parser: argparse.ArgumentParser) -> None:
    """Flags of section ``test``: the paper's appendix B and other ways to look more than once."""
    group = parser.add_argument_group("looking more than once (config section test; the rest by --cfg-options test...)")
    group.add_argument(
        "--refine", type=int, nargs="?", const=1, metavar="ROUNDS", help="box refinement (alone: 1 round, the paper's)"
    )
    group.add_argument(
        "--vote", type=float, nargs="?", const=0.5, metavar="IOU", help="box voting (alone: 0.5, the paper's)"
    )
    for flag, text in (
        ("--scales", "multi-scale testing by maxout: shorter sides (the paper: 200 400 600 800 1000)"),
        ("--sizes", "further shorter sides at which to detect, merged with the first"),
    ):
        group.add_argument(flag, type=int, **MANY, metavar="PX", help=text)
    group.add_argument(
        "--flip",
        action="store_true",
        default=None,
        help="look at the mirrored image too, merged (classifiers: averaged)",
    )
    group.add_argument("--merge", choices=("nms", "wbf"), help="how --flip and --sizes are merged (default: nms)")
    group.add_argument("--nms", choices=("hard", "linear", "gaussian"), help="suppression, or one of the Soft-NMS")
    group.add_argument(
        "--ensemble",
        **MANY,
        metavar="FILE",
        help="checkpoints of further nets for the same classes (model.shorter_side=PX and the like: of all)",
    )
    group.add_argument(
        "--winograd", action="store_true", default=None, help="faster on a CPU, features equal to about 1e-4"
    )


def add_views(parser: argparse.ArgumentParser) -> None:
    """Flags of classification: more than one view of an image."""
    group = parser.add_argument_group("classifiers (and --ensemble)")
    views = group.add_mutually_exclusive_group()
    views.add_argument("--ten-crop", action="store_true", help="corners, centre and their mirror images, averaged")
    views.add_argument(
        "--dense",
        type=int,
        nargs="*",
        metavar="PX",
        help="fully convolutional at these shorter sides, averaged (alone: the paper's 224 256 384 480 640)",
    )


def add_localizers(parser: argparse.ArgumentParser) -> None:
    """Flags of localization: whose classes, and a second stage."""
    group = parser.add_argument_group(
        "localizers (and --ensemble, --vote; --dense sees whole images, alone at one scale; without it the centre crop)"
    )
    group.add_argument(
        "--classifier",
        **MANY,
        metavar="FILE",
        help="checkpoints of classifiers, averaged, whose top five classes are asked for (default: the true class)",
    )
    group.add_argument(
        "--second",
        **MANY,
        metavar="FILE",
        help="checkpoints of second stages, averaged, that rescore proposals",
    )


def add_nets(parser: argparse.ArgumentParser, *, several: bool, images: str) -> None:
    """Arguments of an analysis that runs nets."""
    parser.add_argument("config", help="a file of configs/, for its data")
    parser.add_argument(
        "checkpoint",
        nargs="+" if several else 1,
        help="last.pth or best.pth of a run" + (", or NAME=FILE for the legend" if several else ""),
    )
    parser.add_argument("--limit", type=int, metavar="N", help=f"number of {images}")
    parser.add_argument("--cfg-options", **MANY, default=[], metavar="KEY=VALUE", help="override the config")


def add_scales(parser: argparse.ArgumentParser) -> None:
    """Flags of multi-scale testing."""
    parser.add_argument(
        "--scales",
        type=int,
        nargs="+",
        default=[200, 400, 600, 800, 1000],  # inference.settings.PAPER_SCALES, whose import takes seconds
        metavar="PX",
        help="shorter sides of multi-scale testing (default: the paper's 200 400 600 800 1000)",
    )


def options(args: argparse.Namespace, *, dense: str = "test_data.dense") -> list[str]:
    """The overrides, with ``--amp`` among them unless ``run.amp`` is said, and the flags of section ``test``."""
    said = any(option.startswith("run.amp=") for option in args.cfg_options)
    return [*args.cfg_options, *(["run.amp=bf16"] if args.amp and not said else []), *test_options(args, dense=dense)]


def test_options(args: argparse.Namespace, *, dense: str = "test_data.dense") -> list[str]:
    """The flags of :func:`add_test`, :func:`add_views` and :func:`add_localizers` as overrides of the config.

    Args:
        args: those flags.
        dense: the setting that ``--dense`` means: of a classifier's data, or a localizer's ``test.sides``.
    """
    names = ("refine", "vote", "scales", "sizes", "flip", "merge", "nms", "ensemble", "winograd")
    given = {name: getattr(args, name, None) for name in names}
    options = [f"test.{name}={value!r}" for name, value in given.items() if value is not None]
    options += ["test_data.crops=10"] if getattr(args, "ten_crop", False) else []
    for flag, name in (("classifier", "classifiers"), ("second", "second")):
        options += [f"test.{name}={value!r}"] if (value := getattr(args, flag, None)) else []
    sides = getattr(args, "dense", None)
    if sides is None:
        return options
    if dense == "test.sides":
        return [*options, "test.view=dense", *([f"test.sides={tuple(sides)!r}"] if sides else [])]
    return [*options, f"{dense}={tuple(sides) or (224, 256, 384, 480, 640)!r}"]


def check_views(args: argparse.Namespace, config: ExperimentConfig) -> None:
    """Refuse views that the data of a config do not offer, or that no look of its task knows.

    Raises:
        InputError: names the flag, and what there is instead.
    """
    from resdet.errors import InputError

    data, tests = type(config.test_data.settings).model_fields, type(config.test).model_fields
    offered = {"--ten-crop": "crops" in data, "--dense": "dense" in data or "sides" in tests, "--flip": "flip" in tests}
    asked = {"--ten-crop": args.ten_crop, "--dense": args.dense is not None, "--flip": args.flip}
    for flag in (flag for flag, wanted in asked.items() if wanted and not offered[flag]):
        instead = [name for name, there in offered.items() if there]
        what = f"test data ({config.test_data.function.__name__}) that are seen in one way"
        needed = f"{' or '.join(instead)}, or none of these flags" if instead else "no such flag"
        raise InputError(f"{flag} with config {config.filename}", found=what, needed=needed)


def costs_line(seconds: dict[str, float]) -> str:
    """What each stage took, in words."""
    parts = ", ".join(f"{stage} {value:.3f}" for stage, value in seconds.items())
    return f"{sum(seconds.values()):.3f} s per image: {parts}"
