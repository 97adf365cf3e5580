"""All runs below a folder side by side, and what two of them differ in."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from resdet.engine.checkpoints import read_checkpoint
from resdet.engine.metrics import ClassificationMetric, CocoMetric, LocalizationMetric, VocMetric
from resdet.engine.progress import clock
from resdet.engine.record import RECORD, read_record
from resdet.errors import InputError, bounded, printable
from resdet.evaluation.report import aligned
from resdet.files import held

CHECKPOINTS = ("last.pth", "best.pth")
SCORES = tuple(kind.higher_is_better for kind in (CocoMetric, VocMetric, ClassificationMetric, LocalizationMetric))


class Run(NamedTuple):
    """A run, as its work dir tells it; None where that does not tell."""

    folder: str
    began: str | None
    """ISO 8601, UTC."""
    config: str
    """Name of its file, without the ending."""
    overrides: tuple[str, ...] | None
    """What the command line said beyond the config."""
    score: str | None
    """Name of the figure that tells the best checkpoint; more is better."""
    best: float | None
    best_step: int | None
    seed: int | None
    commit: str | None
    """``+`` behind it: with changes that are in no commit."""
    seconds: float | None
    """Of training and validation."""
    step: int
    steps: int | None
    """Of the whole run."""
    state: str
    """finished, stopped or running."""
    figures: Mapping[str, float | None]
    """Of the last validation."""
    settings: Mapping[str, Any]
    """By ``section.name``."""
    versions: Mapping[str, Any]
    machine: Mapping[str, Any]
    partial: bool = False
    """Read from a checkpoint, as the run is of a version that kept no record: the checkpoint tells fewer settings."""


class PassedOver(NamedTuple):
    """A folder that looks like a run and is none, or a damaged one."""

    folder: str
    why: str


def find_runs(root: str | Path) -> tuple[list[Run], list[PassedOver]]:
    """The runs in a folder and below it, the oldest first, and what was passed over. Links are not followed.

    Raises:
        InputError: no such folder.
    """
    if not Path(root).is_dir():
        raise InputError(f"folder {root}", found="no such folder", needed="work dirs of trainings, such as work_dirs")
    runs, others = [], []
    for folder in _folders(root):
        try:
            runs.append(read_run(folder))
        except (InputError, OSError) as error:
            why = f"{error.where}: {error.found}" if isinstance(error, InputError) else error.strerror or str(error)
            others.append(PassedOver(str(folder), printable(why)))
    return sorted(runs, key=lambda run: (run.began or "", run.folder)), others


def read_run(folder: str | Path) -> Run:
    """The run of a work dir.

    Raises:
        InputError: it holds none, or a damaged one, or one of another program.
    """
    folder = Path(folder)
    if not (folder / RECORD).is_file():
        return _of_checkpoint(folder)
    record = read_record(folder)
    return Run(
        str(folder),
        record.began,
        Path(record.config.get("path") or "?").stem,
        record.overrides,
        record.score,
        record.best,
        record.best_step,
        record.seed,
        record.commit,
        record.seconds,
        record.step,
        record.steps,
        _state(folder, finished=record.finished),
        record.figures,
        record.settings,
        record.versions,
        {**record.machine, "processes": record.processes},
    )


def by_score(runs: Sequence[Run]) -> list[Run]:
    """Runs of one metric together, the best first; at the end those without a validation."""
    return sorted(runs, key=lambda run: (run.best is None, run.score or "", -(run.best or 0.0)))


def table(runs: Sequence[Run], others: Sequence[PassedOver], *, root: str | Path) -> str:
    """The runs for a terminal.

    Args:
        runs: in their order.
        others: what was passed over.
        root: folder that paths are told from.
    """
    header = ("began (UTC)", "run", "config", "best", "state", "seed", "commit", "time", "overrides")
    rows = [header, *(_row(run, root) for run in runs)]
    lines = [aligned([[printable(cell) for cell in row] for row in rows])]
    if others:
        first = f"{os.path.relpath(others[0].folder, root)} ({others[0].why})"
        lines.append(f"passed over: {len(others)} folders without a run that can be read; the first: {first}")
    return "\n".join(lines)


def differences(a: Run, b: Run) -> dict[str, tuple[Any, Any]]:
    """What two runs differ in: dotted name to both values, settings first, figures last.

    Where one of them is of a version that kept no record, only what both tell is compared.
    """
    pairs = _pairs("", a.settings, b.settings)
    own = ("config", "overrides", "seed", "commit", "state", "step", "steps", "seconds", "score", "best", "best_step")
    said = {name: (getattr(a, name), getattr(b, name)) for name in own}
    pairs |= {name: said[name] for name in own[:4]}
    for group in ("versions", "machine"):
        pairs |= _pairs(f"{group}.", getattr(a, group), getattr(b, group))
    pairs |= {name: said[name] for name in own[4:]}
    pairs |= _pairs("figures.", a.figures, b.figures)
    known = {name: pair for name, pair in pairs.items() if not (a.partial or b.partial) or None not in pair}
    return {name: values for name, values in known.items() if values[0] != values[1]}


def differences_table(a: Run, b: Run) -> str:
    """The differences of two runs for a terminal, with the gain where both are figures."""
    rows = [("", a.folder, b.folder, "")]
    for name, (one, other) in differences(a, b).items():
        both = all(isinstance(value, float) and value >= 0 for value in (one, other))  # COCO: -1 is "none"
        gain = f"{other - one:+.4f}" if both and name.startswith(("best", "figures.")) else ""
        rows.append((name, _shown(one), _shown(other), gain))
    if len(rows) == 1:
        return f"{a.folder} and {b.folder} do not differ"
    lines = [aligned([[printable(cell) for cell in row] for row in rows])]
    if a.partial or b.partial:
        lines.append("a run of a version without run.json tells less: only what both tell is compared")
    return "\n".join(lines)


def _folders(root: str | Path) -> Iterator[Path]:
    """Those that look like runs."""
    for folder, inner, files in os.walk(root):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        if {RECORD, *CHECKPOINTS} & set(files):
            yield Path(folder)


def _of_checkpoint(folder: Path) -> Run:
    """A run of a version that kept no record, as far as its checkpoint tells it."""
    found = [folder / name for name in CHECKPOINTS if (folder / name).is_file()]
    if not found:
        raise InputError(f"folder {folder}", found=f"neither {RECORD} nor a checkpoint", needed="the work dir of a run")
    meta = read_checkpoint(found[0])["meta"]
    figures = meta.get("figures") or {}
    score = next((name for name in SCORES if name in figures), None)
    configs = sorted(folder.glob("*.py"))
    model = {f"model.{name}": value for name, value in (meta.get("model") or {}).items()}
    stamps = sorted(path.name for path in folder.iterdir() if re.fullmatch(r"\d{8}_\d{6}", path.name))
    best = meta.get("best")
    return Run(
        str(folder),
        _began(stamps[0]) if stamps else None,
        configs[0].stem if len(configs) == 1 else "?",
        None,
        score,
        best if score is not None and best is not None and abs(best) != float("inf") else None,
        None,
        meta.get("seed"),
        None,
        None,
        meta.get("step") or 0,
        None,
        _state(folder, finished=(folder / "metrics.json").is_file()),
        figures,
        {**(meta.get("settings") or {}), **model},
        {"resdet": meta.get("version")},
        {},
        partial=True,
    )


def _began(stamp: str) -> str | None:
    """The name of mmengine's folder of a log, in local time, as ISO 8601 in UTC."""
    try:
        return datetime.strptime(stamp, "%Y%m%d_%H%M%S").astimezone(timezone.utc).isoformat(timespec="seconds")
    except ValueError:
        return None


def _state(folder: Path, *, finished: bool) -> str:
    """A training holds its work dir as long as it lives."""
    if finished:
        return "finished"
    try:
        with held(folder):
            return "stopped"
    except BlockingIOError:
        return "running"
    except OSError:  # a folder of another user
        return "stopped"


def _row(run: Run, root: str | Path) -> tuple[str, ...]:
    at = f" at step {run.best_step}" if run.best_step is not None else ""
    of = f" of {run.steps}" if run.steps is not None else ""
    commit = run.commit or "-"
    return (
        (run.began or "-")[:16].replace("T", " "),
        os.path.relpath(run.folder, root),
        run.config,
        "-" if run.best is None else f"{run.score} {run.best:.4f}{at}",
        run.state if run.state == "finished" and run.step == run.steps else f"{run.state} at step {run.step}{of}",
        "-" if run.seed is None else str(run.seed),
        commit[:8] + "+" * commit.endswith("+"),
        "-" if run.seconds is None else clock(run.seconds),
        " ".join(run.overrides or ()) or "-",
    )


def _pairs(group: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Both values of each name; None where one does not tell it."""
    return {f"{group}{name}": (a.get(name), b.get(name)) for name in dict.fromkeys([*a, *b])}


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (tuple, list)):
        return " ".join(map(_shown, value)) or "-"
    return "-" if value is None else value if isinstance(value, str) else bounded(value)
