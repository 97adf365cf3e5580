"""``tools/report.py`` and ``runs.py``."""

from __future__ import annotations

import argparse
import os
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

    run(main, choose_threads=False)


def runs(arguments: Sequence[str] | None = None) -> None:
    """``tools/runs.py``."""
    parser = argparse.ArgumentParser(
        description="A table of all runs below a folder: when, which config, what was overridden, the best figure, "
        "seed, commit, time, and whether they are finished. Or what two of them differ in."
    )
    add = parser.add_argument
    add("folder", nargs="?", default="work_dirs", help="of work dirs (default: work_dirs)")
    add("--sort", choices=("time", "metric"), default="time", help="the oldest first (default), or the best first")
    explained = "only what these two work dirs differ in: settings, seed, versions, commit, figures"
    add("--diff", nargs=2, metavar=("A", "B"), help=explained)
    add("--json", metavar="FILE", help="write the runs, or the differences, as JSON")
    args = parser.parse_args(arguments)
    if args.diff and args.sort != "time":
        parser.error("--diff compares two runs: no --sort")

    def main() -> None:
        from resdet.errors import InputError
        from resdet.evaluation.report import write_json
        from resdet.inspection.runs import by_score, differences, differences_table, find_runs, read_run, table

        if args.diff:
            inside = [os.path.join(args.folder, name) for name in args.diff]  # as the table names them
            places = [name if os.path.isdir(name) else path for name, path in zip(args.diff, inside, strict=True)]
            a, b = (read_run(place) for place in places)
            print(differences_table(a, b))
            record: dict[str, object] = {"a": a.folder, "b": b.folder, "differences": differences(a, b)}
        else:
            found, others = find_runs(args.folder)
            if not found:
                read = f"no run; {len(others)} folders that cannot be read: {others[0].why}" if others else "no run"
                raise InputError(f"folder {args.folder}", found=read, needed="work dirs of tools/train_*.py below it")
            found = by_score(found) if args.sort == "metric" else found
            print(table(found, others, root=args.folder))
            record = {"runs": found, "passed_over": others}
        if args.json:
            write_json(args.json, record)

    run(main, choose_threads=False)
