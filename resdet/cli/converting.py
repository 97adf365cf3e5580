"""``tools/convert.py`` and ``publish.py``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from resdet.cli.running import run


def convert(arguments: Sequence[str] | None = None) -> None:
    """``tools/convert.py``."""
    parser = argparse.ArgumentParser(
        description="Turn a Faster R-CNN of torchvision, detectron2 or mmdetection, or a ResNet in the names of Caffe "
        "or Caffe2, into a file of ours. The kind is recognised; nothing in the file is executed."
    )
    add = parser.add_argument
    add("source", help="a .pth, .pt, .pkl or .safetensors file")
    add("out", help="what to write: .pth for a detector, .safetensors for a backbone")
    explained = (
        "class names in the order of the labels: a,b,c or a file with one a line "
        "(default: the file's own; of 80 COCO's, of 20 VOC's)"
    )
    add("--classes", metavar="NAMES", help=explained)
    explained = "the source's own config: detectron2's .yaml (config.yaml beside its runs), mmdetection's .py; not run"
    add("--config", metavar="FILE", help=explained)
    add("--channels", choices=("bgr", "rgb"), help="order of the pixels, for files that do not tell")
    add("--stride-on", choices=("1x1", "3x3"), help="convolution of its bottlenecks that has the stride, likewise")
    explained = "both at once: caffe is BGR and stride on the first 1x1, pytorch RGB and stride on the 3x3"
    add("--style", choices=("caffe", "pytorch"), help=explained)
    add("--batchnorm-eps", type=float, metavar="E", help="of the source's BN layers (default: what its kind has)")
    args = parser.parse_args(arguments)

    def main() -> None:
        from resdet.convert.files import convert_file
        from resdet.labels import COCO_CLASSES

        report = convert_file(**vars(args))
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

    run(main, choose_threads=False)


def publish(arguments: Sequence[str] | None = None) -> None:
    """``tools/publish.py``."""
    parser = argparse.ArgumentParser(
        description="A trained detector or localizer as one .safetensors file: weights without the optimizer, and in "
        "the header the net, its classes and their ids, how it sees an image, its metrics, its config."
    )
    parser.add_argument("checkpoint", help="last.pth or best.pth of a run")
    parser.add_argument("out", help="what to write: NAME.safetensors")
    parser.add_argument("--half", action="store_true", help="weights as 16-bit floats: half the size")
    parser.add_argument("--licence", default="", metavar="TEXT", help="under which others may use it")
    args = parser.parse_args(arguments)

    def main() -> None:
        from resdet.engine.publish import publish_net

        path = publish_net(args.checkpoint, args.out, half=args.half, licence=args.licence)
        print(f"-> {path}, {path.stat().st_size / 2**20:.1f} MiB\nnext: resdet.Detector({str(path)!r})(image)")

    run(main, choose_threads=False)
