"""``tools/benchmark.py``."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

from resdet.cli.arguments import MANY
from resdet.cli.running import run


def benchmark(arguments: Sequence[str] | None = None) -> None:
    """``tools/benchmark.py``."""
    parser = argparse.ArgumentParser(
        description="Time detectors beside torchvision's, each side in its own process, in turns in one run: same "
        "weights, images and threads. Also what loader processes cost, classification, and how cost grows."
    )
    parser.add_argument(
        "work",
        nargs="+",
        choices=("infer", "train", "data", "eval", "cls", "loc", "growth"),
        help="what to measure; data: memory of loader processes, and what the loader delivers of what decoding allows; "
        "eval: COCO's evaluation beside pycocotools, minutes; cls: cost of --configs; loc: a localizer's step against "
        "its classes; growth: cost against image side, batch, proposals, classes and processes on a small net, with "
        "pictures",
    )
    parser.add_argument(
        "--nets", nargs="+", default=["r50_fpn"], choices=("r50_fpn", "r50_c4", "r101_c4"), help="default: r50_fpn"
    )
    parser.add_argument(
        "--beside",
        nargs="+",
        default=["torchvision"],
        choices=("torchvision", "detectron2", "mmdetection"),
        help="others to measure beside, where they are installed (default: torchvision)",
    )
    parser.add_argument(
        "--configs",
        **MANY,
        default=[],
        metavar="FILE",
        help="classification configs: images/s, hours of the whole",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="images of a step (default: infer 1, train 2, cls at most 32, loc 8)",
    )
    parser.add_argument("--amp", choices=("off", "bf16", "fp16"), default="off", help="mixed precision, on both sides")
    parser.add_argument("--winograd", action="store_true", help="in our nets, at inference")
    parser.add_argument(
        "--compile", choices=("off", "default", "reduce-overhead"), default="off", help="torch.compile of our nets"
    )
    parser.add_argument(
        "--keep-memory",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="our side keeps freed memory, as our tools do; the other side runs as shipped",
    )
    parser.add_argument(
        "--sizes",
        nargs="+",
        default=["320x427"],
        metavar="HxW",
        help="image sizes (default: 320x427; COCO is 800x1066)",
    )
    parser.add_argument("--profile", action="store_true", help="seconds of each station as well, in further runs")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="timed runs of each net (default: 5)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of torch (default: its own choice; growth 1)")
    parser.add_argument("--out", metavar="FILE", help="write all figures as JSON; growth: pictures beside it")
    args = parser.parse_args(arguments)
    for name in ("batch_size", "runs", "threads"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)}: at least 1")
    if args.winograd and "train" in args.work:
        parser.error("--winograd: at inference only, without train")
    if args.profile and args.compile != "off":
        parser.error("--profile: clocks inside compiled parts would be compiled with them; without --compile")

    def main() -> None:
        from resdet.errors import InputError
        from resdet.evaluation.report import provenance, write_json

        if "cls" in args.work and not args.configs:
            raise InputError("--configs", found="none", needed="classification configs for the work 'cls'")
        rows = _benchmark_beside(args)
        if "data" in args.work:
            from resdet.benchmarks.loader_memory import worker_memory

            arrays, ours, lists = worker_memory()
            rows.append({"work": "data", "arrays_mib": arrays, "worker_mib": ours, "worker_of_dicts_mib": lists})
            print(f"COCO-sized annotations: {arrays:.0f} MiB; a worker adds {ours:.1f} MiB, with dicts {lists:.0f} MiB")
            rows += _benchmark_loader()
        if "eval" in args.work:
            rows += _benchmark_evaluation()
        if "cls" in args.work:
            rows += _benchmark_cls(args)
        if "loc" in args.work:
            rows += _benchmark_localizer(args)
        if "growth" in args.work:
            rows.append(_benchmark_growth(args))
        if args.out:
            write_json(args.out, {"rows": rows, **provenance(None, None)})

    run(main)


def _benchmark_loader() -> list:
    """Rows of the loader's part of ``data``."""
    from resdet.benchmarks.data import decode_share

    rows = decode_share()
    print(f"\n{'on one core':<28} {'images/s':>9} {'share':>7}")
    for row in rows:
        print(f"{row.work:<28} {row.images_per_second:>9.1f} {row.share:>7.2f}")
    return rows


def _benchmark_evaluation() -> list:
    """Rows of ``eval``."""
    from resdet.benchmarks.evaluation import time_evaluation

    rows = time_evaluation()
    print(f"\n{'5,000 images x 100 detections':<30} {'seconds':>9} {'times faster':>13} {'difference':>11}")
    for row in rows:
        print(f"{row.backend:<30} {row.seconds:>9.2f} {row.ratio:>13.1f} {row.difference:>11.1e}")
    return rows


def _benchmark_localizer(args: argparse.Namespace) -> list:
    """Rows of the work ``loc``."""
    from resdet.benchmarks.localization import localizer_costs

    rows = localizer_costs(batch_size=args.batch_size or 8, runs=args.runs, threads=args.threads)
    print(f"{'classes':>9} {'parameters':>12} {'loss':>9} {'update':>9} {'GiB':>7}")
    for row in rows:
        seconds = f"{row.loss_seconds:>8.2f}s {row.update_seconds:>8.3f}s"
        print(f"{row.classes:>9,} {row.parameters:>12,} {seconds} {row.memory:>7.2f}")
    return rows


def _benchmark_beside(args: argparse.Namespace) -> list:
    """Rows of the works ``infer`` and ``train``, each printed as soon as it is there."""
    from resdet.errors import InputError

    sizes = []
    for size in args.sizes:
        height, cross, width = size.partition("x")
        if not (cross and height.isdigit() and width.isdigit() and min(int(height), int(width)) >= 32):
            raise InputError("--sizes", found=repr(size), needed="HEIGHTxWIDTH, as 800x1066, 32 or more each")
        sizes.append((int(height), int(width)))
    works = [work for work in args.work if work in ("infer", "train")]
    if not works:
        return []

    from resdet.benchmarks import timing
    from resdet.benchmarks.sides import Side

    rows = []
    print(timing.table_head(), flush=True)
    for beside, net, hw, work in itertools.product(args.beside, args.nets, sizes, works):
        batch = args.batch_size or {"infer": 1, "train": 2}[work]
        how = {name: getattr(args, name) for name in ("amp", "winograd", "compile", "keep_memory", "threads")}
        side = Side(True, beside, net, work, hw, batch, **how)
        rows.append(timing.compare(side, runs=args.runs, profile=args.profile))
        print(timing.table_line(rows[-1]), flush=True)
    for row in rows if args.profile else ():
        print(f"\n{timing.table_line(row)}\n\n{timing.profile_table(row)}")
    for row in rows[:1]:
        print(timing.LEGEND.format(row.peak_flops / 1e9))
    return rows


def _benchmark_cls(args: argparse.Namespace) -> list:
    """Rows of the work ``cls``."""
    import torch

    from resdet.benchmarks.costs import training_cost

    if args.threads:
        torch.set_num_threads(args.threads)
    rows = []
    print(f"{'':<32} {'images/s':>9} {'steps':>9} {'hours':>9}")
    for path in args.configs:
        cost = training_cost(path, batch_size=args.batch_size or 32, runs=args.runs, amp=args.amp)
        rows.append(cost)
        name = Path(path).stem
        print(f"{name:<32} {cost.images_per_second:>9.1f} {cost.steps:>9} {cost.hours:>9.1f}", flush=True)
    return rows


def _benchmark_growth(args: argparse.Namespace) -> dict:
    """The work ``growth``: its points and what they tell; pictures are written."""
    from resdet.benchmarks import growth

    costs = []
    axes = growth.Point._fields
    print(f"| work  | {' | '.join(axes)} | images/s | GiB    |\n|{'---|' * (len(axes) + 3)}")
    for point in growth.points():
        for work in growth.WORKS:
            costs.append(growth.measure(point, work, runs=args.runs, threads=args.threads or 1))
            cells = [str(value).ljust(len(axis)) for axis, value in zip(axes, point, strict=True)]
            rate, memory = f"{costs[-1].images_per_second:<8.2f}", f"{costs[-1].memory:.3f}"
            print(f"| {work} | {' | '.join(cells)} | {rate} | {memory}  |", flush=True)
    verdicts = growth.check(costs)
    print("\n".join(["", *verdicts, *map(str, growth.picture(costs, Path(args.out or "growth").with_suffix(".png")))]))
    return {"work": "growth", "costs": costs, "verdicts": verdicts}
