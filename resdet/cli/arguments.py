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


def add_options(parser: argparse.ArgumentParser) -> None:
    """The flag that overrides a config."""
    explained = "override the config, as in optimizer.lr=0.01 loader.batch_size=4 model.init=weights.safetensors"
    parser.add_argument("--cfg-options", **MANY, default=[], metavar="KEY=VALUE", help=explained)


def add_common(parser: argparse.ArgumentParser) -> None:
    """Flags that every tool with a config takes."""
    explained = "folder of what is written (default: work_dirs/<config name>)"
    parser.add_argument("--work-dir", metavar="DIR", help=explained)
    add_options(parser)
    explained = "who started the processes: torchrun (pytorch), srun (slurm) or mpirun (mpi); default none"
    launchers = ("none", "pytorch", "slurm", "mpi")
    parser.add_argument("--launcher", choices=launchers, default="none", help=explained)


def add_test(parser: argparse.ArgumentParser) -> None:
    """Flags of section ``test``: the paper's appendix B and other ways to look more than once.

    The ``dest`` of each is the setting that it means.
    """
    group = parser.add_argument_group("looking more than once (config section test; the rest by --cfg-options test...)")
    add = group.add_argument
    alone: dict[str, Any] = {"type": int, "nargs": "?", "const": 1, "metavar": "ROUNDS"}
    add("--refine", dest="test.refine", **alone, help="box refinement (alone: 1 round, the paper's)")
    alone = {"type": float, "nargs": "?", "const": 0.5, "metavar": "IOU"}
    add("--vote", dest="test.vote", **alone, help="box voting (alone: 0.5, the paper's)")
    explained = "multi-scale testing by maxout: shorter sides (the paper: 200 400 600 800 1000)"
    add("--scales", dest="test.scales", type=int, **MANY, metavar="PX", help=explained)
    explained = "further shorter sides at which to detect, merged with the first"
    add("--sizes", dest="test.sizes", type=int, **MANY, metavar="PX", help=explained)
    switch: dict[str, Any] = {"action": "store_true", "default": None}
    add("--flip", dest="test.flip", **switch, help="look at the mirrored image too, merged (classifiers: averaged)")
    explained = "large images in tiles of this side too (alone: 640; test.tile_overlap=0.2 is the share in common)"
    add("--tiles", dest="test.tiles", type=int, nargs="?", const=640, metavar="PX", help=explained)
    explained = "how --flip, --sizes and --tiles are merged (default: nms)"
    add("--merge", dest="test.merge", choices=("nms", "wbf"), help=explained)
    explained = "suppression, or one of the Soft-NMS"
    add("--nms", dest="test.nms", choices=("hard", "linear", "gaussian"), help=explained)
    explained = "checkpoints of further nets for the same classes (model.shorter_side=PX and the like: of all)"
    add("--ensemble", dest="test.ensemble", **MANY, metavar="FILE", help=explained)
    add("--winograd", dest="test.winograd", **switch, help="faster on a CPU, features equal to about 1e-4")


def add_views(parser: argparse.ArgumentParser) -> None:
    """Flags of classification: more than one view of an image."""
    group = parser.add_argument_group("classifiers (and --ensemble)")
    views = group.add_mutually_exclusive_group()
    ten: dict[str, Any] = {"dest": "test_data.crops", "action": "store_const", "const": 10}
    views.add_argument("--ten-crop", **ten, help="corners, centre and their mirror images, averaged")
    explained = "fully convolutional at these shorter sides, averaged (alone: the paper's 224 256 384 480 640)"
    views.add_argument("--dense", type=int, nargs="*", metavar="PX", help=explained)


def add_localizers(parser: argparse.ArgumentParser) -> None:
    """Flags of localization: whose classes, and a second stage."""
    group = parser.add_argument_group(
        "localizers (and --ensemble, --vote; --dense sees whole images, alone at one scale; without it the centre crop)"
    )
    explained = "checkpoints of classifiers, averaged, whose top five classes are asked for (default: the true class)"
    group.add_argument("--classifier", dest="test.classifiers", **MANY, metavar="FILE", help=explained)
    explained = "checkpoints of second stages, averaged, that rescore proposals"
    group.add_argument("--second", dest="test.second", **MANY, metavar="FILE", help=explained)


def add_nets(parser: argparse.ArgumentParser, *, several: bool, images: str) -> None:
    """Arguments of an analysis that runs nets."""
    parser.add_argument("config", help="a file of configs/, for its data")
    parser.add_argument(
        "checkpoint",
        nargs="+" if several else 1,
        help="last.pth or best.pth of a run" + (", or NAME=FILE for the legend" if several else ""),
    )
    parser.add_argument("--limit", type=int, metavar="N", help=f"number of {images}")
    add_options(parser)


def add_scales(parser: argparse.ArgumentParser) -> None:
    """Flags of multi-scale testing."""
    paper = [200, 400, 600, 800, 1000]  # inference.settings.PAPER_SCALES, whose import takes seconds
    explained = "shorter sides of multi-scale testing (default: the paper's 200 400 600 800 1000)"
    parser.add_argument("--scales", type=int, nargs="+", default=paper, metavar="PX", help=explained)


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
    given = {name: value for name, value in vars(args).items() if "." in name and value is not None}
    options = [f"{name}={value!r}" for name, value in given.items()]
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
    given = vars(args)
    asked = {"--ten-crop": given["test_data.crops"], "--dense": args.dense is not None, "--flip": given["test.flip"]}
    for flag in (flag for flag, wanted in asked.items() if wanted and not offered[flag]):
        instead = [name for name, there in offered.items() if there]
        what = f"test data ({config.test_data.function.__name__}) that are seen in one way"
        needed = f"{' or '.join(instead)}, or none of these flags" if instead else "no such flag"
        raise InputError(f"{flag} with config {config.filename}", found=what, needed=needed)


def costs_line(seconds: dict[str, float]) -> str:
    """What each stage took, in words."""
    parts = ", ".join(f"{stage} {value:.3f}" for stage, value in seconds.items())
    return f"{sum(seconds.values()):.3f} s per image: {parts}"
