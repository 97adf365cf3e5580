"""Training and test error over the steps of a training (Figs. 1, 4 and 6): plain nets degrade with depth, residual not.

The log is what a run writes into its work dir: ``<start>/vis_data/scalars.json``, a line for each report.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from resdet.analysis.chart import Line, Panel
from resdet.errors import InputError


class Errors(NamedTuple):
    """Errors as fractions, each with its step; of several seeds their means."""

    train: dict[int, float]
    """Mean since the report before."""
    test: dict[int, float]
    """Top-1 error of each validation."""
    train_spread: dict[int, float] | None = None
    """Standard deviation over the seeds, where there are several."""
    test_spread: dict[int, float] | None = None


def read_errors(work_dir: str | Path) -> Errors:
    """The errors that a run has logged; of a run with ``--seeds`` the mean and the deviation over them.

    Only steps that every seed has reached count.

    Raises:
        InputError: there is no log with errors in it, or one is damaged.
    """
    seeds = sorted(path for path in Path(work_dir).glob("seed*") if path.is_dir())
    if not seeds:
        return _read_run(work_dir)
    runs = [_read_run(path) for path in seeds]
    means, spreads = [], []
    for series in zip(*(run[:2] for run in runs), strict=True):
        steps = sorted(set.intersection(*map(set, series)))
        table = {step: np.array([one[step] for one in series]) for step in steps}
        means.append({step: float(values.mean()) for step, values in table.items()})
        deviation = {step: float(values.std(ddof=1)) for step, values in table.items()} if len(runs) > 1 else {}
        spreads.append(deviation)
    return Errors(*means, *spreads)


def _read_run(work_dir: str | Path) -> Errors:
    """The errors of one training.

    A run that was resumed, or begun anew, has a log for each start; from its first step on, a later log replaces the
    earlier ones.

    Raises:
        InputError: there is no log with errors in it, or one is damaged.
    """
    errors = Errors({}, {})
    logs = sorted(Path(work_dir).glob("*/vis_data/scalars.json"))  # the folders are named by the time of the start
    for log in logs:
        rows = read_rows(log)
        first = min((row["step"] for row in rows), default=0)
        for series, key in zip(errors[:2], ("error", "top1_error"), strict=True):
            for step in [step for step in series if rows and step >= first]:
                del series[step]
            series.update((row["step"], row[key]) for row in rows if key in row)
    if not errors.train and not errors.test:
        found = f"{len(logs)} logs without an error" if logs else "no */vis_data/scalars.json"
        raise InputError(f"run {work_dir}", found=found, needed="the work dir of tools/train_cls.py")
    return errors


def error_panel(runs: Mapping[str, Errors]) -> Panel:
    """The paper's figure: training errors thin and dashed, test errors bold, one colour for each run.

    The first steps, in which every net errs often, are cut off above three times the greatest final error.
    """
    lines = []
    for colour, (name, errors) in enumerate(runs.items()):
        for series, spread, style in zip(errors[:2], errors[2:], ("dashed", "bold"), strict=True):
            steps = sorted(series)
            band = [100 * spread[step] for step in steps] if spread else ()
            line = Line(steps, [100 * series[step] for step in steps], colour=colour, style=style, spread=band)
            lines.append(line)
        place = -1 if errors.test else -2
        lines[place] = lines[place]._replace(name=name)
    last = [line.y[-1] for line in lines if len(line.y) and np.isfinite(line.y[-1])]
    top = min(100.0, 3 * max(last)) if last and max(last) > 0 else None
    return Panel("dashed: training, bold: test", "step", "top-1 error (%)", lines, top=top)


def read_rows(log: Path) -> list[dict]:
    """Reports in the order of writing; a last line cut short, by a stop or while it is written, is not one."""
    rows, lines = [], log.read_text(encoding="utf-8").splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines) and not line.endswith("\n"):
                continue
            raise InputError(f"{log}, line {number}", found=line.strip()[:60], needed="a JSON object") from error
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows
