"""``tools/ladder.py``, ``show_steps.py`` and ``analyze_cls.py``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from resdet.cli.arguments import MANY, add_common, add_nets, add_scales, at_least
from resdet.cli.running import run


def ladder(arguments: Sequence[str] | None = None) -> None:
    """``tools/ladder.py``."""
    parser = argparse.ArgumentParser(
        description="The paper's Table 9 row by row: baseline, + box refinement, + global context, + multi-scale "
        "testing, ensemble, and tiles, which the paper has not. Checkpoints tell their nets; the config tells the "
        "data. Several checkpoints of a kind are seeds: the table gives mean and standard deviation."
    )
    add = parser.add_argument
    add("config", help="a file of configs/, for its test data")
    add("--baseline", **MANY, required=True, metavar="FILE", help="nets without global context")
    add("--context", **MANY, default=[], metavar="FILE", help="nets with it, for the same seeds")
    explained = "nets of the ensemble (default: all of the last row)"
    add("--ensemble", **MANY, default=[], metavar="FILE", help=explained)
    add_scales(parser)
    explained = "a last row that looks at tiles of this side in pixels too (as test.tiles; alone: 640)"
    add("--tiles", type=int, nargs="?", const=640, metavar="PX", help=explained)
    add("--group", **MANY, default=[], metavar="CLASS", help="classes to give the mean AP of, too")
    explained = "sides that divide small, medium and large objects (default: COCO's 32 96)"
    add("--size-bounds", type=float, nargs=2, default=(32, 96), metavar="PX", help=explained)
    add("--out", metavar="FILE", help="write rows, figures of each class and provenance as JSON")
    add("--markdown", metavar="FILE", help="write the table as Markdown")
    add_common(parser)
    args = parser.parse_args(arguments)
    run(lambda: _climb(args))


def _climb(args: argparse.Namespace) -> None:
    from resdet.backbones.published import file_hash
    from resdet.engine import distributed
    from resdet.engine.config import load_config
    from resdet.errors import InputError
    from resdet.evaluation.report import provenance, write_json
    from resdet.studies import ladder as table_9

    tiles = [] if args.tiles is None else [f"test.tiles={args.tiles}"]
    config = load_config(args.config, [*args.cfg_options, *tiles])
    if config.task.name != "detection":
        raise InputError(f"config {args.config}", found=f"task = {config.task.name!r}", needed="a detection config")
    distributed.start(args.launcher, timeout=config.run.start_timeout)
    kinds = {"baseline": args.baseline, "context": args.context, "ensemble": args.ensemble}
    bounds = tuple(args.size_bounds)
    rows = table_9.climb(config, **kinds, scales=args.scales, group=args.group, size_bounds=bounds)
    if distributed.rank():
        return
    table = "\n\n".join([table_9.as_markdown(rows, group=", ".join(args.group)), *table_9.left_out(rows)])
    print(table)
    if args.markdown:
        Path(args.markdown).parent.mkdir(parents=True, exist_ok=True)
        Path(args.markdown).write_text(f"{table}\n\n`python tools/ladder.py {' '.join(sys.argv[1:])}`\n", "utf-8")
    if out := args.out or (args.work_dir and Path(args.work_dir) / "ladder.json"):
        nets = {kind: {path: file_hash(path) for path in paths} for kind, paths in kinds.items()}
        record = provenance(args.config, args.baseline[0], seed=config.run.seed)
        write_json(out, {"rows": rows, "nets": nets, "scales": args.scales, "size_bounds": bounds, **record})


def show_steps(arguments: Sequence[str] | None = None) -> None:
    """``tools/show_steps.py``."""
    parser = argparse.ArgumentParser(
        description="What each step of the paper's appendix B does to one image, in a picture each "
        "(docs/appendix_b.md). Checkpoints tell their nets."
    )
    parser.add_argument("checkpoint", help="best.pth of a net without global context")
    parser.add_argument("image", help="an image in which it finds objects")
    parser.add_argument("--context", metavar="FILE", help="a net with global context, for that picture")
    explained = "nets that join the first one, for that picture"
    parser.add_argument("--ensemble", **MANY, default=[], metavar="FILE", help=explained)
    add_scales(parser)
    explained = "size at which regions are seen best, that of the crops in pre-training (default: the paper's 224)"
    parser.add_argument("--region-side", type=float, default=224.0, metavar="PX", help=explained)
    parser.add_argument("--out", default="steps", metavar="DIR", help="folder of the pictures (default: steps)")
    args = parser.parse_args(arguments)

    def main() -> None:
        from resdet.studies.steps import show_steps as draw

        names = ("context", "ensemble", "scales", "region_side", "out")
        written = draw(args.checkpoint, args.image, **{name: getattr(args, name) for name in names})
        print("\n".join(map(str, written)))

    run(main)


def analyze(arguments: Sequence[str] | None = None) -> None:
    """``tools/analyze_cls.py``."""
    parser = argparse.ArgumentParser(description="Look into classification nets: each analysis a picture and a JSON.")
    explained = "folder of what is written (default: analysis)"
    parser.add_argument("--out", default="analysis", metavar="DIR", help=explained)
    kinds = parser.add_subparsers(dest="analysis", required=True, metavar="ANALYSIS")

    def kind(name: str, text: str, analyse: Callable[..., list]) -> argparse.ArgumentParser:
        added = kinds.add_parser(name, help=text, description=text)
        added.add_argument("--out", default=argparse.SUPPRESS, metavar="DIR", help=explained)
        added.set_defaults(analyse=analyse)
        return added

    def number(added: argparse.ArgumentParser, name: str, default: int, text: str) -> None:
        explained = f"{text} (default: {default})"
        added.add_argument(f"--{name}", type=at_least(1), default=default, metavar="N", help=explained)

    text = "training and test error of several runs (the paper's Figs. 1, 4 and 6)"
    added = kind("curves", text, lambda a: a.curves(args.runs, out=args.out))
    added.add_argument("runs", nargs="+", metavar="RUN", help="work dirs of tools/train_cls.py, or NAME=DIR")
    text = "the tables of shortcuts and activation orders (He et al. 2016), the paper beside runs"
    added = kind("studies", text, lambda a: [a.study_tables(args.runs, out=args.out)])
    added.add_argument("runs", nargs="+", metavar="RUN", help="work dirs of configs/cifar10_resnet110_study.py")
    text = "standard deviation of each 3x3 layer's response (Fig. 7), of one or more nets"
    added = kind("responses", text, lambda a: a.layer_responses(source(a)))
    add_nets(added, several=True, images="test images (default: all)")
    text = "norm of the loss gradient at each block and each weight, of one or more nets"
    added = kind("gradients", text, lambda a: a.gradient_norms(source(a)))
    add_nets(added, several=True, images="training images (default: 512)")
    text = "error with blocks deleted or swapped (Veit et al. 2016)"
    added = kind("lesions", text, lambda a: a.net_lesions(source(a), draws=args.draws))
    add_nets(added, several=False, images="test images (default: all)")
    number(added, "draws", 5, "random choices of k blocks")
    text = "how many paths of each length, and what gradient they carry (Veit et al. 2016)"
    added = kind("paths", text, lambda a: a.net_paths(source(a), samples=args.samples))
    add_nets(added, several=False, images="training images (default: 128)")
    number(added, "samples", 20, "paths of each length")
    text = "error of each class, classes taken for each other, and the worst images"
    added = kind("errors", text, lambda a: a.error_report(source(a), worst=args.worst))
    add_nets(added, several=False, images="test images (default: all)")
    number(added, "worst", 32, "images on the sheet")
    args = parser.parse_args(arguments)

    def source(analyses: ModuleType) -> Any:
        return analyses.Source(args.config, args.checkpoint, args.cfg_options, args.limit, args.out)

    def main() -> None:
        from resdet.analysis import experiments

        print("\n".join(map(str, args.analyse(experiments))))

    run(main)
