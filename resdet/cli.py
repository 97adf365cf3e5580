"""The command line of the tools: arguments, and a user's mistake told in one message.

Nothing heavy is imported before the arguments are read, so that ``-h`` and a typo are answered at once.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path


def run(main: Callable[[], None]) -> None:
    """Call a tool; print the message of a user's mistake without a traceback and exit with 1."""
    from resdet.errors import InputError
    from resdet.memory import keep_freed_memory

    try:
        _check_environment()
        if os.environ.get("RESDET_KEEP_MEMORY", "1") != "0":
            keep_freed_memory()
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:  # whoever read the output, `head` say, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a folder that is a file, no permission, a full disk
        sys.exit(f"error: {error.filename or 'file system'}\n  found:  {error.strerror or error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped; a training run goes on with --resume")


def add_common(parser: argparse.ArgumentParser) -> None:
    """Flags that every tool with a config takes."""
    parser.add_argument(
        "--work-dir", metavar="DIR", help="folder of what is written (default: work_dirs/<config name>)"
    )
    parser.add_argument(
        "--cfg-options",
        nargs="+",
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
        group.add_argument(flag, type=int, nargs="+", metavar="PX", help=text)
    group.add_argument("--flip", action="store_true", default=None, help="detect on the mirrored image too, merged")
    group.add_argument("--merge", choices=("nms", "wbf"), help="how --flip and --sizes are merged (default: nms)")
    group.add_argument("--nms", choices=("hard", "linear", "gaussian"), help="suppression, or one of the Soft-NMS")
    group.add_argument("--ensemble", nargs="+", metavar="FILE", help="checkpoints of further nets for the same classes")
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
        nargs="+",
        metavar="FILE",
        help="checkpoints of classifiers, averaged, whose top five classes are asked for (default: the true class)",
    )
    group.add_argument(
        "--second", nargs="+", metavar="FILE", help="checkpoints of second stages, averaged, that rescore proposals"
    )


def train(task: str, description: str, arguments: Sequence[str] | None = None) -> None:
    """``tools/train_det.py``, ``tools/train_cls.py`` and ``tools/train_loc.py``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("config", help="a file of configs/")
    add_common(parser)
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CHECKPOINT",
        help="go on from a checkpoint; without a file from last.pth of the work dir, if there is one",
    )
    parser.add_argument("--amp", action="store_true", help="mixed precision: bfloat16 (run.amp=fp16 for float16)")
    parser.add_argument(
        "--auto-scale-lr",
        action="store_true",
        help="scale optimizer.lr by loader.batch_size x optimizer.accumulate / optimizer.batch_size",
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", metavar="N", help="one training for each, then mean and standard deviation"
    )
    args = parser.parse_args(arguments)

    def main() -> None:
        from resdet.engine.config import load_config
        from resdet.engine.train import train as run_training
        from resdet.engine.train import train_seeds
        from resdet.errors import InputError

        config = load_config(args.config, _options(args))
        if config.task != task:
            tools = {"detection": "train_det", "classification": "train_cls", "localization": "train_loc"}
            tool = f"tools/{tools[config.task]}.py"
            raise InputError(f"config {args.config}", found=f"task = {config.task!r}", needed=f"{task!r}, or {tool}")
        how = {"launcher": args.launcher, "resume": args.resume, "auto_scale_lr": args.auto_scale_lr}
        if not args.seeds:
            run_training(config, work_dir=_work_dir(args), **how)
            return
        configs = {seed: load_config(args.config, [*_options(args), f"run.seed={seed}"]) for seed in args.seeds}
        for name, (mean, deviation) in train_seeds(configs, work_dir=_work_dir(args), **how).items():
            print(f"{name:<16} {mean:.4f} ± {deviation:.4f}  over {len(configs)} seeds")

    run(main)


def evaluate(arguments: Sequence[str] | None = None) -> None:
    """``tools/eval.py``."""
    parser = argparse.ArgumentParser(
        description="mAP@[.5,.95] and the other COCO figures, VOC AP, top-1 and top-5 error, or localization errors, "
        "by the config's metric."
    )
    parser.add_argument("config", help="a file of configs/")
    parser.add_argument("checkpoint", nargs="?", help="last.pth or best.pth of a run")
    parser.add_argument("--detections", metavar="FILE", help="score a COCO results file instead of a net")
    parser.add_argument("--out", metavar="FILE", help="write figures, classes and provenance as JSON")
    parser.add_argument("--save-detections", metavar="FILE", help="write the detections as a COCO results file")
    parser.add_argument("--amp", action="store_true", help="mixed precision: bfloat16")
    add_test(parser)
    add_views(parser)
    add_localizers(parser)
    add_common(parser)
    args = parser.parse_args(arguments)
    if (args.checkpoint is None) == (args.detections is None):
        parser.error("give a CHECKPOINT, or --detections FILE")
    if args.detections and _test_options(args):
        parser.error("--detections are scored as they are; " + _test_options(args)[0] + " needs a CHECKPOINT")

    def main() -> None:
        from resdet.engine import distributed
        from resdet.engine.config import load_config, read_settings
        from resdet.engine.evaluate import evaluate as run_evaluation
        from resdet.engine.evaluate import evaluate_detections, load_experiment
        from resdet.errors import InputError
        from resdet.evaluation.report import format_table, provenance, write_json

        sees_whole = args.dense is not None and load_config(args.config).task == "localization"
        config = load_config(args.config, _options(args, dense="test.sides" if sees_whole else "test_data.dense"))
        if args.save_detections and config.task != "detection":
            raise InputError("--save-detections", found=f"a {config.task} config", needed="a detection config")
        distributed.start(args.launcher)
        costs: dict[str, float] = {}
        if args.detections:
            figures, metric = evaluate_detections(config, args.detections)
        else:
            experiment = load_experiment(config, args.checkpoint)
            figures, metric = run_evaluation(experiment), experiment.metric
            if config.task == "detection":
                costs = experiment.task.net.seconds_per_image()
        if distributed.rank():
            return
        if config.task == "detection":
            print(format_table(metric.report))
        else:
            print("\n".join(f"{name:<16} {value:.4f}" for name, value in figures.items()))
        if config.task == "detection" and config.metric != "coco":
            print(f"\nby COCO's protocol: mAP@[.5,.95] {figures['coco/AP']:.3f}  mAP@.5 {figures['coco/AP50']:.3f}")
        if costs:
            print(f"\n{_costs(costs)}")
        if args.save_detections:
            write_json(args.save_detections, metric.rows)
        out = args.out or (Path(args.work_dir) / "eval.json" if args.work_dir else None)
        if out:
            seed = read_settings(config, "run").seed
            scored = args.checkpoint or args.detections
            record = provenance(args.config, scored, seed=seed, config_text=config.pretty_text)
            per_class = getattr(metric.report, "per_class", ()) if config.task == "detection" else ()
            write_json(out, {"figures": figures, "per_class": per_class, "seconds_per_image": costs, **record})

    run(main)


def infer(arguments: Sequence[str] | None = None) -> None:
    """``tools/infer.py``."""
    parser = argparse.ArgumentParser(description="Detect objects: annotated pictures and a COCO-format JSON.")
    parser.add_argument("config", help="a file of configs/")
    parser.add_argument("checkpoint", help="last.pth or best.pth of a run")
    parser.add_argument("images", nargs="+", help="image files or folders")
    parser.add_argument(
        "--out", default="detections", metavar="DIR", help="folder of the results (default: detections)"
    )
    parser.add_argument(
        "--score-threshold",
        type=float,
        metavar="P",
        help="least score of a detection (default: test.score_threshold of the config, else 0.5)",
    )
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="images at a time (default: 1)")
    add_test(parser)
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="override the config")
    args = parser.parse_args(arguments)

    def main() -> None:
        from resdet.api import infer_files

        written, costs = infer_files(
            args.config,
            args.checkpoint,
            args.images,
            out=args.out,
            score_threshold=args.score_threshold,
            device=args.device,
            batch_size=args.batch_size,
            options=[*args.cfg_options, *_test_options(args)],
        )
        print(f"{written} images -> {args.out}/ (pictures and detections.json)\n{_costs(costs)}")

    run(main)


def benchmark(arguments: Sequence[str] | None = None) -> None:
    """``tools/benchmark.py``."""
    parser = argparse.ArgumentParser(
        description="Time detectors beside torchvision's, each side in its own process, in turns in one run: same "
        "weights, images and threads. Also what loader processes cost, classification, and how cost grows."
    )
    parser.add_argument(
        "work",
        nargs="+",
        choices=("infer", "train", "data", "eval", "cls", "growth"),
        help="what to measure; data: memory of loader processes, and what the loader delivers of what decoding allows; "
        "eval: COCO's evaluation beside pycocotools, minutes; cls: cost of --configs; growth: cost against image "
        "side, batch, proposals, classes and processes on a small net, with pictures",
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
        "--configs", nargs="+", default=[], metavar="FILE", help="classification configs: images/s, hours of the whole"
    )
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="images of a step (default: infer 1, train 2, cls at most 32)"
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

    from resdet.costs import training_cost

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


def convert(arguments: Sequence[str] | None = None) -> None:
    """``tools/convert.py``."""
    parser = argparse.ArgumentParser(
        description="Turn a Faster R-CNN of torchvision, detectron2 or mmdetection, or a ResNet in the names of Caffe "
        "or Caffe2, into a file of ours. The kind is recognised; nothing in the file is executed."
    )
    parser.add_argument("source", help="a .pth, .pt, .pkl or .safetensors file")
    parser.add_argument("out", help="what to write: .pth for a detector, .safetensors for a backbone")
    parser.add_argument(
        "--classes",
        metavar="NAMES",
        help="class names in the order of the labels: a,b,c or a file with one a line "
        "(default: the file's own; of 80 COCO's, of 20 VOC's)",
    )
    parser.add_argument(
        "--style",
        choices=("caffe", "pytorch"),
        help="for files that do not tell: caffe is BGR and stride on the first 1x1, pytorch RGB and stride on the 3x3",
    )
    parser.add_argument(
        "--batchnorm-eps", type=float, metavar="E", help="of the source's BN layers (default: what its kind has)"
    )
    args = parser.parse_args(arguments)

    def main() -> None:
        from resdet.conversion import convert_file
        from resdet.labels import COCO_CLASSES

        report = convert_file(
            args.source, args.out, classes=args.classes, style=args.style, batchnorm_eps=args.batchnorm_eps
        )
        print("\n".join([f"{report.kind}: {report.tensors} tensors", *(f"- {note}" for note in report.notes)]))
        if report.classes:
            shown = ", ".join(report.classes[:5]) + (", ..." if len(report.classes) > 5 else "")
            print(f"{len(report.classes)} classes: {shown}")
            print(f"-> {report.out}")
            if report.classes == COCO_CLASSES:
                print(f"next: python tools/eval.py configs/converted_coco.py {report.out}")
            else:
                print("next: a copy of configs/converted_coco.py with your own test data, and tools/eval.py")
        else:
            print(f"-> {report.out}\nnext: a config with model.init={report.out}")

    run(main)


def ladder(arguments: Sequence[str] | None = None) -> None:
    """``tools/ladder.py``."""
    parser = argparse.ArgumentParser(
        description="The paper's Table 9 row by row: baseline, + box refinement, + global context, + multi-scale "
        "testing, ensemble. Checkpoints tell their nets; the config tells the data. Several checkpoints of a kind are "
        "seeds: the table gives mean and standard deviation."
    )
    parser.add_argument("config", help="a file of configs/, for its test data")
    parser.add_argument("--baseline", nargs="+", required=True, metavar="FILE", help="nets without global context")
    parser.add_argument("--context", nargs="+", default=[], metavar="FILE", help="nets with it, for the same seeds")
    parser.add_argument(
        "--ensemble", nargs="+", default=[], metavar="FILE", help="nets of the ensemble (default: all of the last row)"
    )
    _add_scales(parser)
    parser.add_argument("--group", nargs="+", default=[], metavar="CLASS", help="classes to give the mean AP of, too")
    parser.add_argument(
        "--size-bounds",
        type=float,
        nargs=2,
        default=(32, 96),
        metavar="PX",
        help="sides that divide small, medium and large objects (default: COCO's 32 96)",
    )
    parser.add_argument("--out", metavar="FILE", help="write rows, figures of each class and provenance as JSON")
    parser.add_argument("--markdown", metavar="FILE", help="write the table as Markdown")
    add_common(parser)
    args = parser.parse_args(arguments)

    def main() -> None:
        from resdet import ladder as table_9
        from resdet.backbones.weights import file_hash
        from resdet.engine import distributed
        from resdet.engine.config import load_config, read_settings
        from resdet.errors import InputError
        from resdet.evaluation.report import provenance, write_json

        config = load_config(args.config, args.cfg_options)
        if config.task != "detection":
            raise InputError(f"config {args.config}", found=f"task = {config.task!r}", needed="a detection config")
        if said := [option for option in args.cfg_options if option.startswith("model.")]:
            raise InputError("--cfg-options", found=said[0], needed="no model settings: checkpoints tell their nets")
        distributed.start(args.launcher)
        rows = table_9.climb(
            config,
            args.baseline,
            context=args.context,
            ensemble=args.ensemble,
            scales=args.scales,
            group=args.group,
            size_bounds=tuple(args.size_bounds),
        )
        if distributed.rank():
            return
        table = table_9.as_markdown(rows, group=", ".join(args.group))
        print(table)
        if args.markdown:
            table_9.write_markdown(args.markdown, table, f"`python tools/ladder.py {' '.join(sys.argv[1:])}`")
        out = args.out or (Path(args.work_dir) / "ladder.json" if args.work_dir else None)
        if out:
            record = provenance(args.config, args.baseline[0], seed=read_settings(config, "run").seed)
            kinds = {"baseline": args.baseline, "context": args.context, "ensemble": args.ensemble}
            nets = {kind: {path: file_hash(path) for path in paths} for kind, paths in kinds.items()}
            write_json(
                out, {"rows": rows, "nets": nets, "scales": args.scales, "size_bounds": args.size_bounds, **record}
            )

    run(main)


def show_steps(arguments: Sequence[str] | None = None) -> None:
    """``tools/show_steps.py``."""
    parser = argparse.ArgumentParser(
        description="What each step of the paper's appendix B does to one image, in a picture each "
        "(docs/appendix_b.md). Checkpoints tell their nets."
    )
    parser.add_argument("checkpoint", help="best.pth of a net without global context")
    parser.add_argument("image", help="an image in which it finds objects")
    parser.add_argument("--context", metavar="FILE", help="a net with global context, for that picture")
    parser.add_argument(
        "--ensemble", nargs="+", default=[], metavar="FILE", help="nets that join the first one, for that picture"
    )
    _add_scales(parser)
    parser.add_argument(
        "--region-side",
        type=float,
        default=224.0,
        metavar="PX",
        help="size at which regions are seen best, that of the crops in pre-training (default: the paper's 224)",
    )
    parser.add_argument("--out", default="steps", metavar="DIR", help="folder of the pictures (default: steps)")
    args = parser.parse_args(arguments)

    def main() -> None:
        from resdet.steps import show_steps as draw

        written = draw(
            args.checkpoint,
            args.image,
            context=args.context,
            ensemble=args.ensemble,
            scales=args.scales,
            region_side=args.region_side,
            out=args.out,
        )
        print("\n".join(map(str, written)))

    run(main)


def analyze(arguments: Sequence[str] | None = None) -> None:
    """``tools/analyze_cls.py``."""
    parser = argparse.ArgumentParser(description="Look into classification nets: each analysis a picture and a JSON.")
    explained = "folder of what is written (default: analysis)"
    parser.add_argument("--out", default="analysis", metavar="DIR", help=explained)
    kinds = parser.add_subparsers(dest="analysis", required=True, metavar="ANALYSIS")

    def kind(name: str, text: str) -> argparse.ArgumentParser:
        added = kinds.add_parser(name, help=text, description=text)
        added.add_argument("--out", default=argparse.SUPPRESS, metavar="DIR", help=explained)
        return added

    added = kind("curves", "training and test error of several runs (the paper's Figs. 1, 4 and 6)")
    added.add_argument("runs", nargs="+", metavar="RUN", help="work dirs of tools/train_cls.py, or NAME=DIR")
    added = kind("responses", "standard deviation of each 3x3 layer's response (Fig. 7), of one or more nets")
    _add_nets(added, several=True, images="test images (default: all)")
    added = kind("gradients", "norm of the loss gradient at each block and each weight, of one or more nets")
    _add_nets(added, several=True, images="training images (default: 512)")
    added = kind("lesions", "error with blocks deleted or swapped (Veit et al. 2016)")
    _add_nets(added, several=False, images="test images (default: all)")
    added.add_argument("--draws", type=int, default=5, metavar="N", help="random choices of k blocks (default: 5)")
    added = kind("paths", "how many paths of each length, and what gradient they carry (Veit et al. 2016)")
    _add_nets(added, several=False, images="training images (default: 128)")
    added.add_argument("--samples", type=int, default=20, metavar="N", help="paths of each length (default: 20)")
    added = kind("errors", "error of each class, classes taken for each other, and the worst images")
    _add_nets(added, several=False, images="test images (default: all)")
    added.add_argument("--worst", type=int, default=32, metavar="N", help="images on the sheet (default: 32)")
    args = parser.parse_args(arguments)
    for name in ("draws", "samples", "worst"):
        if getattr(args, name, 1) < 1:
            parser.error(f"--{name} {getattr(args, name)}: at least 1")

    def main() -> None:
        from resdet import analyze as analyses

        if args.analysis == "curves":
            written = analyses.curves(args.runs, out=args.out)
        else:
            source = analyses.Source(args.config, args.checkpoint, args.cfg_options, args.limit, args.out)
            written = {
                "responses": lambda: analyses.layer_responses(source),
                "gradients": lambda: analyses.gradient_norms(source),
                "lesions": lambda: analyses.net_lesions(source, draws=args.draws),
                "paths": lambda: analyses.net_paths(source, samples=args.samples),
                "errors": lambda: analyses.error_report(source, worst=args.worst),
            }[args.analysis]()
        print("\n".join(map(str, written)))

    run(main)


def _add_nets(parser: argparse.ArgumentParser, *, several: bool, images: str) -> None:
    """Arguments of an analysis that runs nets."""
    parser.add_argument("config", help="a file of configs/, for its data")
    parser.add_argument(
        "checkpoint",
        nargs="+" if several else 1,
        help="last.pth or best.pth of a run" + (", or NAME=FILE for the legend" if several else ""),
    )
    parser.add_argument("--limit", type=int, metavar="N", help=f"number of {images}")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="override the config")


def _add_scales(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--scales",
        type=int,
        nargs="+",
        default=[200, 400, 600, 800, 1000],  # inference.settings.PAPER_SCALES, whose import takes seconds
        metavar="PX",
        help="shorter sides of multi-scale testing (default: the paper's 200 400 600 800 1000)",
    )


def _work_dir(args: argparse.Namespace) -> Path:
    return Path(args.work_dir or Path("work_dirs") / Path(args.config).stem)


def _options(args: argparse.Namespace, *, dense: str = "test_data.dense") -> list[str]:
    """The overrides, with ``--amp`` among them unless ``run.amp`` is said, and the flags of section ``test``."""
    said = any(option.startswith("run.amp=") for option in args.cfg_options)
    return [*args.cfg_options, *(["run.amp=bf16"] if args.amp and not said else []), *_test_options(args, dense=dense)]


def _costs(seconds: dict[str, float]) -> str:
    parts = ", ".join(f"{stage} {value:.3f}" for stage, value in seconds.items())
    return f"{sum(seconds.values()):.3f} s per image: {parts}"


def _test_options(args: argparse.Namespace, *, dense: str = "test_data.dense") -> list[str]:
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


def _check_environment() -> None:
    """Packages that import only when they fit the machine; say what to install where they do not."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    _check_import(_try_torch, "torch and torchvision", "pip install --upgrade --force-reinstall torch torchvision")
    _check_import(_try_opencv, "opencv (cv2)", "pip install --force-reinstall --no-deps opencv-python-headless")


def _try_torch() -> None:
    import torch
    import torchvision.ops

    torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)


def _try_opencv() -> None:
    import cv2  # noqa: F401


def _check_import(attempt: Callable[[], None], what: str, command: str) -> None:
    from resdet.errors import InputError

    try:
        attempt()
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"the installed {what}", found=reason, needed=command) from error


if __name__ == "__main__":
    run(lambda: None)  # only the check of the environment
