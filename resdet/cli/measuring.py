"""``tools/benchmark.py``."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resdet.cli.arguments import MANY, at_least
from resdet.cli.running import run


def benchmark(arguments: Sequence[str] | None = None) -> None:
    """``tools/benchmark.py``."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.winograd and "train" in args.work and (args.amp, args.compile) != ("off", "off"):
        parser.error("--winograd: of train neither with --amp nor with --compile, under which it is skipped")
    if args.images and "scale" not in args.work:
        parser.error("--images: of the work scale only")
    if args.profile and args.compile != "off":
        parser.error("--profile: clocks inside compiled parts would be compiled with them; without --compile")

    def main() -> None:
        from resdet.errors import InputError
        from resdet.evaluation.report import provenance, write_json

        if "cls" in args.work and not args.configs:
            raise InputError("--configs", found="none", needed="classification configs for the work 'cls'")
        sizes = [_size(text) for text in args.sizes]
        works = [work for work in args.work if work in ("infer", "train")]
        rows = _beside(args, works, sizes) if works else []
        for work, measure in WORKS.items():
            rows += measure(args) if work in args.work else []
        if args.out:
            write_json(args.out, {"rows": rows, **provenance(None, None)})

    run(main, choose_threads=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Time detectors beside torchvision's, each side in its own process, in turns in one run: same "
        "weights, images and threads. Also what loader processes cost, classification, and how cost grows."
    )
    add = parser.add_argument
    count: dict[str, Any] = {"type": at_least(1), "metavar": "N"}
    add(
        "work",
        nargs="+",
        choices=("infer", "train", *WORKS),
        help="what to measure; data: memory of loader processes, and what the loader delivers of what decoding allows; "
        "eval: COCO's evaluation beside pycocotools, minutes; cls: cost of --configs; loc: a localizer's step against "
        "its classes; growth: cost against image side, batch, proposals, classes and processes on a small net, with "
        "pictures; scale: reading a COCO file of --images",
    )
    add("--nets", nargs="+", default=["r50_fpn"], choices=("r50_fpn", "r50_c4", "r101_c4"), help="default: r50_fpn")
    others = ("torchvision", "detectron2", "mmdetection", "onnxruntime", "openvino")
    explained = "others to measure beside, where they are installed (default: torchvision); the last two run our net"
    add("--beside", nargs="+", default=["torchvision"], choices=others, help=explained)
    explained = "classification configs: images/s, hours of the whole"
    add("--configs", **MANY, default=[], metavar="FILE", help=explained)
    add("--images", **count, help="of the work 'scale' (default: 100000; Objects365 has 1742292)")
    add("--batch-size", **count, help="images of a step (default: infer 1, train 2, cls at most 32, loc 8)")
    add("--amp", choices=("off", "bf16", "fp16"), default="off", help="mixed precision, on both sides")
    add("--winograd", action="store_true", help="in our nets, on a CPU")
    modes = ("off", "default", "reduce-overhead")
    add("--compile", choices=modes, default="off", help="torch.compile of our nets")
    add(
        "--keep-memory",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="our side keeps freed memory, as our tools do; the other side runs as shipped",
    )
    explained = "image sizes (default: 320x427; COCO is 800x1066)"
    add("--sizes", nargs="+", default=["320x427"], metavar="HxW", help=explained)
    add("--profile", action="store_true", help="seconds of each station as well, in further runs")
    add("--runs", **count, default=5, help="timed runs of each net (default: 5)")
    add("--threads", **count, help="threads of torch (default: its own choice; growth 1)")
    add("--out", metavar="FILE", help="write all figures as JSON; growth: pictures beside it")
    return parser


def _size(text: str) -> tuple[int, int]:
    from resdet.errors import InputError

    height, cross, width = text.partition("x")
    if not (cross and height.isdigit() and width.isdigit() and min(int(height), int(width)) >= 32):
        raise InputError("--sizes", found=repr(text), needed="HEIGHTxWIDTH, as 800x1066, 32 or more each")
    return int(height), int(width)


def _beside(args: argparse.Namespace, works: Sequence[Any], sizes: Sequence[tuple[int, int]]) -> list:
    from resdet.analysis import tables
    from resdet.benchmarks import timing

    how = {name: getattr(args, name) for name in ("amp", "winograd", "compile", "keep_memory", "threads")}
    sides = [
        timing.Side(True, beside, net, work, hw, args.batch_size or {"infer": 1, "train": 2}[work], **how)
        for beside, net, hw, work in itertools.product(args.beside, args.nets, sizes, works)
    ]
    for side in sides:
        timing.check_side(side)
    rows = tables.stream((timing.compare(side, runs=args.runs, profile=args.profile) for side in sides), timing.COLUMNS)
    for row in rows if args.profile else ():
        print(f"\n{tables.line(row, timing.COLUMNS)}\n\n{timing.profile_table(row)}")
    print(timing.LEGEND.format(rows[0].peak_flops / 1e9))
    return rows


def _data(args: argparse.Namespace) -> list:
    from resdet.analysis import tables
    from resdet.benchmarks.data import COLUMNS, decode_share, worker_memory

    arrays, ours, lists = worker_memory()
    print(f"COCO-sized annotations: {arrays:.0f} MiB; a worker adds {ours:.1f} MiB, with dicts {lists:.0f} MiB\n")
    memory = {"work": "data", "arrays_mib": arrays, "worker_mib": ours, "worker_of_dicts_mib": lists}
    return [memory, *tables.stream(decode_share(), COLUMNS)]


def _evaluation(args: argparse.Namespace) -> list:
    from resdet.analysis import tables
    from resdet.benchmarks.evaluation import COLUMNS, time_evaluation

    return tables.stream(time_evaluation(), COLUMNS)


def _classification(args: argparse.Namespace) -> list:
    import torch

    from resdet.analysis import tables
    from resdet.benchmarks.costs import COLUMNS, training_cost

    if args.threads:
        torch.set_num_threads(args.threads)
    how = {"batch_size": args.batch_size or 32, "runs": args.runs, "amp": args.amp}
    return tables.stream((training_cost(path, **how) for path in args.configs), COLUMNS)


def _localization(args: argparse.Namespace) -> list:
    from resdet.analysis import tables
    from resdet.benchmarks.localization import COLUMNS, localizer_costs

    rows = localizer_costs(batch_size=args.batch_size or 8, runs=args.runs, threads=args.threads)
    return tables.stream(rows, COLUMNS)


def _growth(args: argparse.Namespace) -> list:
    """Points and what they tell; pictures are written."""
    from resdet.analysis import tables
    from resdet.benchmarks import growth

    kinds = itertools.product(growth.points(), growth.WORKS)
    rows = (growth.measure(point, work, runs=args.runs, threads=args.threads or 1) for point, work in kinds)
    costs = tables.stream(rows, growth.COLUMNS)
    verdicts = growth.check(costs)
    pictures = growth.picture(costs, Path(args.out or "growth").with_suffix(".png"))
    print("\n".join(["", *verdicts, *map(str, pictures)]))
    return [{"work": "growth", "costs": costs, "verdicts": verdicts}]


def _scale(args: argparse.Namespace) -> list:
    from resdet.analysis import tables
    from resdet.benchmarks.scale import COLUMNS, at_full_size, scale_costs

    rows = tables.stream(scale_costs(args.images or 100_000), COLUMNS)
    print("\n".join(["", *map(at_full_size, rows[:2])]))
    return rows


WORKS = {
    "data": _data,
    "eval": _evaluation,
    "cls": _classification,
    "loc": _localization,
    "growth": _growth,
    "scale": _scale,
}
"""In this order, after those beside others."""
