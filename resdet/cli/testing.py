"""``tools/eval.py`` and ``infer.py``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resdet.cli.arguments import (
    MANY,
    add_common,
    add_localizers,
    add_options,
    add_test,
    add_views,
    at_least,
    check_views,
    costs_line,
    options,
    test_options,
)
from resdet.cli.data import add_data, config_of
from resdet.cli.running import run

if TYPE_CHECKING:
    from resdet.engine.config import ExperimentConfig

ANY = "converted_coco"
"""The config of a checkpoint that tells its net, for data by their folder."""


def evaluate(arguments: Sequence[str] | None = None) -> None:
    """``tools/eval.py``."""
    parser = _parser_of_eval()
    args = parser.parse_args(arguments)
    args.config, args.checkpoint = _config_and_checkpoint(parser, args)
    if args.detections and test_options(args):
        parser.error("--detections are scored as they are; " + test_options(args)[0] + " needs a CHECKPOINT")

    def main() -> None:
        from resdet.datasets.detection import DetectionDataset
        from resdet.datasets.headers import WHOLE, check_files
        from resdet.engine import distributed
        from resdet.engine.evaluate import evaluate as run_evaluation
        from resdet.engine.evaluate import evaluate_detections
        from resdet.engine.experiment import load_experiment

        config = _config_of_eval(args)
        distributed.start(args.launcher, timeout=config.run.start_timeout)
        costs: dict[str, float] = {}
        left_out = 0
        if args.detections:
            figures, metric = evaluate_detections(config, args.detections)
            left_out = metric.annotations.left_out
        else:
            experiment = load_experiment(config, args.checkpoint, unscored=args.save_detections is not None)
            if isinstance(experiment.test_set, DetectionDataset) and not distributed.rank():
                known = experiment.test_set.annotations
                check_files(known, "test images", whole=len(known) <= WHOLE)
            figures = run_evaluation(experiment, work_dir=args.work_dir, launcher=args.launcher)
            metric, left_out = experiment.metric, getattr(experiment.test_set, "left_out", 0)
            if config.task.name == "detection":
                costs = experiment.adapter.net.seconds_per_image()
        if not distributed.rank():
            _tell(args, config, figures, metric, {"seconds_per_image": costs, "images_left_out": left_out})

    run(main)


def _parser_of_eval() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="mAP@[.5,.95] and the other COCO figures, VOC AP, top-1 and top-5 error, or localization errors, "
        "by the config's metric."
    )
    explained = (
        "a file of configs/ (not needed with --data), then last.pth or best.pth of a run or a published file; of "
        "classifiers also a foreign one"
    )
    parser.add_argument("given", nargs="*", metavar="[CONFIG] CHECKPOINT", help=explained)
    add_data(parser)
    parser.add_argument("--detections", metavar="FILE", help="score a COCO results file instead of a net")
    parser.add_argument("--out", metavar="FILE", help="write figures, classes and provenance as JSON")
    parser.add_argument(
        "--save-detections",
        metavar="FILE",
        help="write the detections as a COCO results file, also of a test set without boxes",
    )
    parser.add_argument("--amp", action="store_true", help="mixed precision: bfloat16")
    for add in (add_test, add_views, add_localizers, add_common):
        add(parser)
    return parser


def _config_of_eval(args: argparse.Namespace) -> ExperimentConfig:
    from resdet.errors import InputError

    plain = config_of(args.config, args.data, default=ANY)
    check_views(args, plain)
    if args.save_detections and plain.task.name != "detection":
        raise InputError("--save-detections", found=f"a {plain.task.name} config", needed="a detection config")
    sees_whole = args.dense is not None and plain.task.name == "localization"
    said = options(args, dense="test.sides" if sees_whole else "test_data.dense")
    return config_of(args.config, args.data, said, default=ANY)


def _tell(
    args: argparse.Namespace, config: ExperimentConfig, figures: dict[str, float], metric: Any, facts: dict[str, Any]
) -> None:
    """Print and write what was measured."""
    from resdet.evaluation.report import format_table, provenance, write_json

    detection = config.task.name == "detection"
    if detection and metric.report is None:
        print(f"No figures: {metric.annotations.source} has no boxes.")
    elif detection:
        print(format_table(metric.report))
    else:
        print("\n".join(f"{name:<16} {value:.4f}" for name, value in figures.items()))
    if detection and config.metric != "coco" and figures:
        print(f"\nby COCO's protocol: mAP@[.5,.95] {figures['coco/AP']:.3f}  mAP@.5 {figures['coco/AP50']:.3f}")
    if costs := facts["seconds_per_image"]:
        print(f"\n{costs_line(costs)}")
    if left_out := facts["images_left_out"]:
        print(f"\nThese figures leave out {left_out} images that cannot be read (test_data.skip_unreadable).")
    if args.save_detections:
        write_json(args.save_detections, metric.rows)
    if out := args.out or (args.work_dir and Path(args.work_dir) / "eval.json"):
        scored = args.checkpoint or args.detections
        record = provenance(config.filename, scored, seed=config.run.seed, config_text=config.text)
        per_class = getattr(metric.report, "per_class", ()) if detection and figures else ()
        write_json(out, {"figures": figures, "per_class": per_class, **facts, **record})


def _config_and_checkpoint(parser: argparse.ArgumentParser, args: argparse.Namespace) -> tuple[str | None, str | None]:
    """The words of ``eval``: a config where there is no ``--data``, and a checkpoint where there are no detections."""
    words = list(args.given)
    config = words.pop(0) if words and (args.data is None or words[0].endswith(".py")) else None
    checkpoint = words.pop(0) if words else None
    if words or (config is None and args.data is None) or (checkpoint is None) == (args.detections is None):
        parser.error("give a CONFIG (or --data FOLDER), and a CHECKPOINT or --detections FILE")
    if config is not None and config.endswith((".pth", ".safetensors", ".pt")):
        parser.error(f"{config} alone: give --data FOLDER, or a CONFIG before it, which tells the data")
    return config, checkpoint


def infer(arguments: Sequence[str] | None = None) -> None:
    """``tools/infer.py``."""
    parser = _parser_of_infer()
    args = parser.parse_args(arguments)
    config, *given = args.given if args.given[0].endswith(".py") else [None, *args.given]
    if len(given) < 2:
        parser.error("give a CHECKPOINT, perhaps after its CONFIG, and at least one SOURCE")
    saved = [name for name in args.save or ("pictures", "coco") if name != "none"]

    def main() -> None:
        from resdet.api import infer_files
        from resdet.errors import InputError
        from resdet.inspection.uncertain import Uncertain

        further = [] if args.uncertain is None else [partial(Uncertain, count=args.uncertain)]
        seen = infer_files(
            config,
            given[0],
            given[1:],
            out=args.out,
            save=[*further, *saved],  # that one may refuse, before the others overwrite anything
            score_threshold=args.score_threshold,
            device=args.device,
            batch_size=args.batch_size,
            options=[*args.cfg_options, *test_options(args)],
        )
        print(f"{seen.images} images -> {args.out}/ ({', '.join(saved) or 'nothing written'})")
        if further:
            kept = min(args.uncertain, seen.images)
            print(f"the {kept} least certain -> {args.out}/uncertain/ (annotations.json, images/)")
        if seen.images:
            print(costs_line(seen.seconds))
        if seen.unreadable:
            found = f"{len(seen.unreadable)} that do not decode: {'; '.join(seen.unreadable[:3])}"
            raise InputError(f"{seen.images + len(seen.unreadable)} images", found=found, needed="whole image files")

    run(main)


def _parser_of_infer() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Detect objects in images, folders, videos and streams: annotated pictures and a COCO-format JSON.",
        usage="%(prog)s [CONFIG.py] CHECKPOINT SOURCE [SOURCE ...] [flags]",
    )
    explained = (
        "last.pth or best.pth of a run or a published file, perhaps after its config; then images, folders, "
        "patterns, videos, a camera's number, streams (rtsp://...)"
    )
    add = parser.add_argument
    add("given", nargs="+", metavar="[CONFIG] CHECKPOINT SOURCE", help=explained)
    add("--out", default="detections", metavar="DIR", help="folder of the results (default: detections)")
    explained = "what is written: pictures coco yolo voc csv crops, or none (default: pictures coco)"
    kinds = ("pictures", "coco", "yolo", "voc", "csv", "crops", "none")
    add("--save", **MANY, choices=kinds, metavar="WHAT", help=explained)
    explained = "least score of a detection (default: test.score_threshold of the config, else 0.5)"
    add("--score-threshold", type=float, metavar="P", help=explained)
    explained = "write the N pictures most worth annotating next, the least certain ones, with what was found in them"
    add("--uncertain", type=at_least(1), metavar="N", help=explained)
    add("--device", help="cpu or cuda (default: cuda where there is one)")
    add("--batch-size", type=int, default=1, metavar="N", help="images at a time (default: 1)")
    add_test(parser)
    add_options(parser)
    return parser
