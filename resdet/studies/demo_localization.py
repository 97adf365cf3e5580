"""The paper's Tables 13 and 14 row by row, for localizers on any data; ``make demo-loc`` trains small ones first.

Each row is one pass over the test images.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from resdet.analysis.tables import markdown
from resdet.studies.demo import WORK_DIR, draw_answers, say

if TYPE_CHECKING:
    from resdet.engine.config import ExperimentConfig

DENSE = (96, 112, 128, 144)
"""Shorter sides of the demo's multi-scale rows: 6/7 to 9/7 of that of its centre crop, as far as its training goes."""


class Rung(NamedTuple):
    """A row of the paper: localization error on the validation images, in percent."""

    name: str
    paper: float | None
    gives: str
    """The figure: ``gt_class`` or ``top5``, of predicted classes."""


VGG = Rung("VGG-16, centre crop, true class", 33.1, "gt_class")
CENTRE = Rung("per-class RPN, centre crop, true class", 13.3, "gt_class")
WHOLE = Rung("dense, multi-scale, true class", 11.7, "gt_class")
REGIONS_TRUE = Rung("+ R-CNN, true class", None, "gt_class")
PREDICTED = Rung("dense, multi-scale, predicted classes", 14.4, "top5")
REGIONS = Rung("+ R-CNN, predicted classes", 10.6, "top5")
ENSEMBLE = Rung("ensemble", 8.9, "top5")


class Row(NamedTuple):
    """One row, measured."""

    name: str
    paper: float | None
    error: float
    """In percent, of the kind that the paper's figure is."""
    figures: dict[str, float]
    """All of the pass, as fractions."""
    seconds: float
    """Of the whole pass."""


class Nets(NamedTuple):
    """Checkpoints; several of a kind are an ensemble, whose row uses all and the others the first."""

    first: Sequence[str]
    second: Sequence[str] = ()
    classifiers: Sequence[str] = ()


def measure(config: ExperimentConfig, nets: Nets, *, sides: Sequence[int]) -> list[Row]:
    """Every row that the checkpoints allow, on the test data of the first stage's config.

    ``sides`` are the shorter sides of the multi-scale rows, of the classifiers too.

    Raises:
        InputError: a checkpoint is missing, of another kind or of other classes.
    """
    from resdet.engine.evaluate import evaluate
    from resdet.engine.experiment import load_experiment

    dense, one = {"view": "dense", "sides": tuple(sides)}, Nets(*(paths[:1] for paths in nets))
    second = {"second": tuple(one.second)}
    named = {"classifiers": tuple(one.classifiers), "classifier_view": "dense", "classifier_sides": tuple(sides)}
    rows: list[tuple[Rung, dict]] = [(CENTRE, {"view": "centre"}), (WHOLE, dense)]
    rows += [(REGIONS_TRUE, {**dense, **second})] if nets.second else []
    if nets.classifiers:
        rows += [(PREDICTED, {**dense, **named})]
        rows += [(REGIONS, {**dense, **named, **second})] if nets.second else []
        if max(map(len, nets)) > 1:
            joined = {"ensemble": tuple(nets.first[1:]), "second": tuple(nets.second)}
            rows += [(ENSEMBLE, {**dense, **named, **joined, "classifiers": tuple(nets.classifiers)})]
    measured = []
    for rung, settings in rows:
        asked = replace(config, test=config.test.updated(**settings))
        began = time.perf_counter()
        figures = evaluate(load_experiment(asked, nets.first[0]))
        names = {"gt_class": ("loc/gt_class_error",), "top5": ("loc/top5_error", "loc/top1_error")}[rung.gives]
        error = next(100 * figures[name] for name in names if name in figures)
        measured.append(Row(rung.name, rung.paper, error, figures, time.perf_counter() - began))
    return measured


def as_markdown(rows: Sequence[Row]) -> str:
    """The table: our errors beside the paper's, and the pure classification error of the rows that predict classes."""
    head = ["", "paper error %", "ours", "change (paper)", "top-1 error", "classes wrong (top-5)", "seconds"]
    lines = [head, [VGG.name, f"{VGG.paper:.1f}", "", "", "", "", ""]]
    last: dict[bool, Row] = {}
    for row in rows:
        predicted = "loc/gt_class_error" not in row.figures
        before, change = last.get(predicted), ""
        if before is not None:
            paper = "" if None in (row.paper, before.paper) else f" ({row.paper - before.paper:+.1f})"
            change = f"{row.error - before.error:+.1f}{paper}"
        last[predicted] = row
        shown = [f"{100 * row.figures[name]:.1f}" if name in row.figures else "" for name in _EXTRA]
        paper = "" if row.paper is None else f"{row.paper:.1f}"
        lines.append([row.name, paper, f"{row.error:.1f}", change, *shown, f"{row.seconds:.0f}"])
    return markdown(lines)


_EXTRA = ("loc/top1_error", "cls/top5_error")


def demo(*, members: int = 1) -> None:
    """Train a classifier and both stages on the embedded set, then print and write the table.

    Args:
        members: first and second stages of different seeds; from two on there is an ensemble's row.
    """
    from resdet.api import Localizer
    from resdet.datasets.detection import DetectionDataset
    from resdet.engine.config import load_config
    from resdet.engine.train import train
    from resdet.evaluation.report import provenance, write_json
    from resdet.studies.shapes.sources import shapes_loc

    began = time.perf_counter()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    seconds = {}

    def part(name: str, text: str, *options: str, seed: int = 0) -> str:
        say(f"{text} (configs/{name}.py, seed {seed})")
        started, work_dir = time.perf_counter(), WORK_DIR / (f"{name}_seed{seed}" if seed else name)
        train(load_config(name, [*options, f"run.seed={seed}"]), work_dir=work_dir, overwrite=True)
        seconds[work_dir.name] = time.perf_counter() - started
        return str(work_dir / "last.pth")

    say("the data set: one dominant object in each image")
    shapes_loc(split="val")
    seconds["data"] = time.perf_counter() - began
    classifier = part("demo_loc_cls", "the classifier")
    nets = Nets([], [], [classifier])
    for seed in range(members):
        nets.first.append(part("demo_loc", "the first stage: a per-class RPN", seed=seed))
        first = f"regions.first={nets.first[-1]}"
        nets.second.append(part("demo_loc_rcnn", "the second stage: an R-CNN on its proposals", first, seed=seed))
    say("the table")
    proposals = load_config("demo_loc_rcnn").test.proposals  # as the second stage was trained
    config = load_config("demo_loc", [f"test.proposals={proposals}"])
    rows = measure(config, nets, sides=DENSE)
    table, total = as_markdown(rows), time.perf_counter() - began
    out = WORK_DIR / "demo_loc"
    options = {"view": "dense", "sides": DENSE, "classifier_view": "dense", "classifier_sides": DENSE}
    told = {"classifier": classifier, "second": nets.second[0], "test": {**dict(config.test), **options}}
    data = DetectionDataset(shapes_loc(split="val"))
    spread = range(0, len(data), max(1, len(data) // 12))  # over the classes
    title, picture = "Held-out images, the first answer", out / "localizations.png"
    draw_answers(Localizer(nets.first[0], **told), data, spread, picture, title=title, shown=lambda _: slice(1))
    note = f"`make demo-loc`: {total / 60:.1f} minutes in all, {len(data)} images"
    (out / "table.md").write_text(f"{table}\n\n{note}\n")
    record = provenance(config.filename, nets.first[0], seed=config.run.seed)
    write_json(out / "table.json", {"rows": rows, "nets": nets, "sides": DENSE, "seconds": seconds, **record})
    say(f"{table}\n\n{total / 60:.1f} minutes\n{out}/table.md, table.json and localizations.png")
