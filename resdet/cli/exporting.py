"""``tools/export.py``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from resdet.cli.arguments import MANY
from resdet.cli.running import run


def export(arguments: Sequence[str] | None = None) -> None:
    """``tools/export.py``."""
    parser = argparse.ArgumentParser(
        description="A trained detector as one file for other programs, NMS included: ONNX, which runs without torch "
        "(resdet.OnnxDetector), or a program of torch.export."
    )
    parser.add_argument("checkpoint", help="last.pth or best.pth of a run, or a published .safetensors file")
    parser.add_argument("out", help="what to write: NAME.onnx, or NAME.pt2 for torch.export")
    parser.add_argument("--size", metavar="HxW", help="fixed size of the input, as 800x1344 (default: any)")
    parser.add_argument("--dynamic-batch", action="store_true", help="any number of images at a time (default: one)")
    parser.add_argument("--opset", type=int, default=20, metavar="N", help="of ONNX (default: 20)")
    parser.add_argument(
        "--score-threshold", type=float, metavar="P", help="least score of a detection (default: the net's)"
    )
    parser.add_argument("--cfg-options", **MANY, default=[], metavar="KEY=VALUE", help="override model... and test...")
    parser.add_argument("--check", metavar="DIR", help="compare with the net over images of a folder")
    parser.add_argument("--images", type=int, default=64, metavar="N", help="of --check and --int8 (default: 64)")
    group = parser.add_argument_group("8-bit integers, as NAME.int8.onnx beside NAME.onnx")
    group.add_argument("--int8", metavar="DIR", help="images like those it will see, which tell the ranges of values")
    group.add_argument(
        "--annotations", metavar="FILE", help="a COCO annotation file of images in DIR: AP before and after"
    )
    group.add_argument("--threads", type=int, metavar="N", help="of onnxruntime, for the times (default: its choice)")
    args = parser.parse_args(arguments)
    if args.annotations and not args.int8:
        parser.error("--annotations: with --int8, to tell what it costs")
    if args.int8 and not args.out.endswith(".onnx"):
        parser.error(f"--int8: writes ONNX alone, and {args.out} is none")
    for name in ("images", "threads"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name)}: at least 1")

    def main() -> None:
        from resdet.deploy.export import Frame, check_ending, export_detector
        from resdet.deploy.parity import compare
        from resdet.deploy.quantize import sample_images

        check_ending(args.out)
        frame = Frame(_size(args.size), args.dynamic_batch)
        threshold = [] if args.score_threshold is None else [f"test.score_threshold={args.score_threshold}"]
        for flag in ("check", "int8"):  # before minutes of work
            if folder := getattr(args, flag):
                sample_images(folder, flag=flag)
        options = [*args.cfg_options, *threshold]
        path = export_detector(args.checkpoint, args.out, frame=frame, options=options, opset=args.opset)
        print(f"-> {path}, {path.stat().st_size / 2**20:.1f} MiB")
        if args.check:
            images = sample_images(args.check, args.images, flag="check")
            print(f"beside the net: {compare(args.checkpoint, path, images, options=options)}")
        if args.int8:
            _quantize(path, args)
        if path.suffix == ".onnx":
            print(f"next: resdet.OnnxDetector({str(path)!r})(image)")

    run(main)


def _size(text: str | None) -> tuple[int, int] | None:
    """Height and width of ``HxW``.

    Raises:
        InputError: it is none.
    """
    from resdet.errors import InputError

    if text is None:
        return None
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise InputError("--size", found=repr(text), needed="HEIGHTxWIDTH in pixels, as 800x1344")
    return int(height), int(width)


def _quantize(path: Path, args: argparse.Namespace) -> None:
    """Write the file with integers and say what they change."""
    from resdet.deploy.onnx_detector import OnnxDetector
    from resdet.deploy.quantize import average_precision, milliseconds, quantize, sample_images

    images = sample_images(args.int8, args.images)
    small = quantize(path, path.with_suffix(".int8.onnx"), images)
    print(f"-> {small}, {small.stat().st_size / 2**20:.1f} MiB, ranges from {len(images)} images")
    both = [OnnxDetector(each, threads=args.threads) for each in (path, small)]
    rows = [("ms an image, median", *(f"{ms:.1f}" for ms in milliseconds(both, images[:20])))]
    if args.annotations:
        floats, integers = (average_precision(each, args.annotations, args.int8) for each in both)
        rows += [(name, *(f"{100 * value[name]:.2f}" for value in (floats, integers))) for name in floats]
    for name, before, after in (("", "float", "int8"), *rows):
        print(f"{name:<20} {before:>9} {after:>9}")
