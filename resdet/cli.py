"""The command line of the tools: arguments, and a user's mistake told in one message.

Nothing heavy is imported before the arguments are read, so that ``-h`` and a typo are answered at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path


def run(main: Callable[[], None]) -> None:
    """Call a tool; print the message of a user's mistake without a traceback and exit with 1."""
    from resdet.errors import InputError

    try:
        _check_environment()
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


def train(task: str, description: str, arguments: Sequence[str] | None = None) -> None:
    """``tools/train_det.py`` and ``tools/train_cls.py``."""
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
    args = parser.parse_args(arguments)

    def main() -> None:
        from resdet.engine.config import load_config
        from resdet.engine.train import train as run_training
        from resdet.errors import InputError

        config = load_config(args.config, _options(args))
        if config.task != task:
            tool = {"detection": "tools/train_det.py", "classification": "tools/train_cls.py"}[config.task]
            raise InputError(f"config {args.config}", found=f"task = {config.task!r}", needed=f"{task!r}, or {tool}")
        run_training(
            config,
            work_dir=_work_dir(args),
            launcher=args.launcher,
            resume=args.resume,
            auto_scale_lr=args.auto_scale_lr,
        )

    run(main)


def evaluate(arguments: Sequence[str] | None = None) -> None:
    """``tools/eval.py``."""
    parser = argparse.ArgumentParser(
        description="mAP@[.5,.95] and the other COCO figures, VOC AP, or top-1 and top-5 error, by the config's metric."
    )
    parser.add_argument("config", help="a file of configs/")
    parser.add_argument("checkpoint", nargs="?", help="last.pth or best.pth of a run")
    parser.add_argument("--detections", metavar="FILE", help="score a COCO results file instead of a net")
    parser.add_argument("--out", metavar="FILE", help="write figures, classes and provenance as JSON")
    parser.add_argument("--save-detections", metavar="FILE", help="write the detections as a COCO results file")
    parser.add_argument("--amp", action="store_true", help="mixed precision: bfloat16")
    add_common(parser)
    args = parser.parse_args(arguments)
    if (args.checkpoint is None) == (args.detections is None):
        parser.error("give a CHECKPOINT, or --detections FILE")

    def main() -> None:
        from resdet.engine import distributed
        from resdet.engine.config import load_config, read_settings
        from resdet.engine.evaluate import evaluate as run_evaluation
        from resdet.engine.evaluate import evaluate_detections, load_experiment
        from resdet.errors import InputError
        from resdet.evaluation.report import format_table, provenance, write_json

        config = load_config(args.config, _options(args))
        if args.save_detections and config.task != "detection":
            raise InputError("--save-detections", found="a classification config", needed="a detection config")
        distributed.start(args.launcher)
        if args.detections:
            figures, metric = evaluate_detections(config, args.detections)
        else:
            experiment = load_experiment(config, args.checkpoint)
            figures, metric = run_evaluation(experiment), experiment.metric
        if distributed.rank():
            return
        if config.task == "detection":
            print(format_table(metric.report))
        else:
            print("\n".join(f"{name:<16} {value:.4f}" for name, value in figures.items()))
        if config.task == "detection" and config.metric != "coco":
            print(f"\nby COCO's protocol: mAP@[.5,.95] {figures['coco/AP']:.3f}  mAP@.5 {figures['coco/AP50']:.3f}")
        if args.save_detections:
            write_json(args.save_detections, metric.rows)
        out = args.out or (Path(args.work_dir) / "eval.json" if args.work_dir else None)
        if out:
            seed = read_settings(config, "run").seed
            scored = args.checkpoint or args.detections
            record = provenance(args.config, scored, seed=seed, config_text=config.pretty_text)
            per_class = getattr(metric.report, "per_class", ()) if config.task == "detection" else ()
            write_json(out, {"figures": figures, "per_class": per_class, **record})

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
        "--score-threshold", type=float, default=0.5, metavar="P", help="least score of a detection (default: 0.5)"
    )
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="images at a time (default: 1)")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="override the config")
    args = parser.parse_args(arguments)

    def main() -> None:
        from resdet.api import infer_files

        written = infer_files(
            args.config,
            args.checkpoint,
            args.images,
            out=args.out,
            score_threshold=args.score_threshold,
            device=args.device,
            batch_size=args.batch_size,
            options=args.cfg_options,
        )
        print(f"{written} images -> {args.out}/ (pictures and detections.json)")

    run(main)


def benchmark(arguments: Sequence[str] | None = None) -> None:
    """``tools/benchmark.py``."""
    parser = argparse.ArgumentParser(
        description="Time our ResNet-50-FPN beside torchvision's: same weights, images, threads, in turns in one run."
    )
    parser.add_argument("work", nargs="+", choices=("infer", "train", "data"), help="what to measure")
    parser.add_argument(
        "--sizes",
        nargs="+",
        default=["320x427"],
        metavar="HxW",
        help="image sizes (default: 320x427; COCO is 800x1066)",
    )
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="timed runs of each net (default: 5)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of torch (default: its own choice)")
    parser.add_argument("--out", metavar="FILE", help="write the table as JSON")
    args = parser.parse_args(arguments)

    def main() -> None:
        import torch

        from resdet import benchmark as timing
        from resdet.errors import InputError
        from resdet.evaluation.report import provenance, write_json

        if args.threads:
            torch.set_num_threads(args.threads)
        rows = []
        if "data" in args.work:
            arrays, ours, lists = timing.worker_memory()
            rows.append({"work": "data", "arrays_mib": arrays, "worker_mib": ours, "worker_of_dicts_mib": lists})
            print(f"COCO-sized annotations: {arrays:.0f} MiB; a worker adds {ours:.1f} MiB, with dicts {lists:.0f} MiB")
        timed = [work for work in args.work if work != "data"]
        if timed:
            print(f"{'':<36} {'ours':>9} {'torchvision':>12} {'ratio':>7}")
        for size in args.sizes:
            height, cross, width = size.partition("x")
            if not (cross and height.isdigit() and width.isdigit()):
                raise InputError("--sizes", found=repr(size), needed="HEIGHTxWIDTH, as 800x1066")
            for work in timed:
                run_one = {"infer": timing.time_inference, "train": timing.time_training}[work]
                rows.append(run_one((int(height), int(width)), runs=args.runs))
                row = rows[-1]
                print(f"{row.work:<36} {row.ours:>8.2f}s {row.torchvision:>11.2f}s {row.ratio:>7.2f}", flush=True)
        if timed:
            print(f"peak memory of the run, both nets: {timing.peak_memory_gib():.1f} GiB")
        if args.out:
            write_json(args.out, {"rows": rows, **provenance(None, None)})

    run(main)


def _work_dir(args: argparse.Namespace) -> Path:
    return Path(args.work_dir or Path("work_dirs") / Path(args.config).stem)


def _options(args: argparse.Namespace) -> list[str]:
    """The overrides, with ``--amp`` among them unless ``run.amp`` is said."""
    said = any(option.startswith("run.amp=") for option in args.cfg_options)
    return [*args.cfg_options, *(["run.amp=bf16"] if args.amp and not said else [])]


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
