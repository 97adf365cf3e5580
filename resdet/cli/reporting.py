"""``tools/report.py``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from resdet.cli.arguments import add_options, at_least
from resdet.cli.running import run


def report(arguments: Sequence[str] | None = None) -> None:
    """``tools/report.py``."""
    parser = argparse.ArgumentParser(
        description="Look into the detections of a data set: one HTML file with COCO's figures, curves and thresholds "
        "of each class, confusions, what each kind of error costs, calibration and the worst images. Of two detectors "
        "also their differences, with intervals."
    )
    add = parser.add_argument
    explained = "a config, a COCO annotation file (.json), or the work dir of a run, whose net is then asked"
    add("data", help=explained)
    explained = "one COCO results file or two (as of tools/eval.py --save-detections), or work dirs"
    add("results", nargs="*", help=explained)
    add("--images", metavar="DIR", help="folder of the images of an annotation file (default: none)")
    add("--out", default="report.html", metavar="FILE", help="the report (default: report.html)")
    add("--json", metavar="FILE", help="write all numbers as JSON")
    add("--worst", type=at_least(0), default=12, metavar="N", help="images in each list (default: 12)")
    explained = "of the images, for intervals (default: 1000)"
    add("--resamples", type=at_least(1), default=1000, metavar="B", help=explained)
    add("--seed", type=at_least(0), default=0, metavar="S", help="of the resamples (default: 0)")
    add_options(parser)
    args = parser.parse_args(arguments)

    def main() -> None:
        from resdet.evaluation.report import write_json
        from resdet.inspection.page import write_report

        record = write_report(
            args.data,
            args.results,
            out=args.out,
            images=args.images,
            worst=args.worst,
            bootstrap=(args.resamples, args.seed),
            options=args.cfg_options,
        )
        if args.json:
            write_json(args.json, record)
        print("\n".join(path for path in (args.out, args.json) if path))

    run(main)
