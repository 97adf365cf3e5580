"""The paper's Table 9 row by row, for any checkpoints on any detection data: ``tools/ladder.py``.

All rows are measured in one pass over the data. What a row shares with another (maps and proposals) is computed once;
its time still counts for each row that needs it, so "s/image" is what the row would take alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from resdet.analysis.tables import markdown
from resdet.cpu.folding import fold_batchnorm
from resdet.datasets.detection import DetectionDataset
from resdet.detection.faster_rcnn import FasterRCNN
from resdet.detection.settings import DetectorSettings
from resdet.engine import distributed
from resdet.engine.checkpoints import read_checkpoint
from resdet.engine.config import ExperimentConfig
from resdet.engine.experiment import data_loader
from resdet.engine.metrics import CocoMetric
from resdet.engine.optim import autocast
from resdet.engine.progress import shown
from resdet.engine.tasks.detection import load_detector
from resdet.errors import InputError
from resdet.evaluation.coco import SIZE_BOUNDS
from resdet.inference.predictor import Predictor
from resdet.inference.settings import PAPER_SCALES, TestSettings
from resdet.inference.view import Views
from resdet.settings import TESTED, marked

REFINED = {"refine": 1, "vote": 0.5, "nms_iou": 0.3}
"""The paper's box refinement: one round, NMS at 0.3 on the union, voting among boxes of IoU 0.5 or more."""


class Rung(NamedTuple):
    """A row of Table 9: mAP@.5 and mAP@[.5,.95] in percent, COCO val unless the paper has test-dev only.

    None where the paper has no such row.
    """

    name: str
    paper50: float | None
    paper: float | None
    gain: float | None
    """Of mAP@[.5,.95] over the row before, on the same images."""


RUNGS = (
    Rung("baseline Faster R-CNN", 48.4, 27.2, None),
    Rung("+ box refinement", 49.9, 29.9, 2.7),
    Rung("+ global context", 51.1, 30.0, 0.1),
    Rung("+ multi-scale testing", 53.8, 32.5, 2.5),
    Rung("ensemble", 59.0, 37.4, 2.5),  # test-dev, trained on trainval, where its single net has 55.7 and 34.9
)


class Row(NamedTuple):
    """One row, measured. Figures are means over the seeds, in percent."""

    name: str
    paper50: float | None
    paper: float | None
    paper_gain: float | None
    runs: list[dict[str, float]]
    """COCO's figures as fractions, and those of each class, for each seed."""
    seconds: float
    """Per image."""
    stages: dict[str, float]
    """Those, by stage."""

    def mean(self, figure: str) -> float:
        """In percent; NaN where the data have no such objects."""
        values = [run[figure] for run in self.runs]
        return 100 * statistics.fmean(values) if min(values) >= 0 else float("nan")

    def spread(self, figure: str) -> float | None:
        """Standard deviation over the seeds."""
        values = [100 * run[figure] for run in self.runs]
        return statistics.stdev(values) if len(values) > 1 else None


def climb(
    config: ExperimentConfig,
    baseline: Sequence[str],
    *,
    context: Sequence[str] = (),
    ensemble: Sequence[str] = (),
    scales: Sequence[int] = PAPER_SCALES,
    group: Sequence[str] = (),
    size_bounds: tuple[float, float] = SIZE_BOUNDS,
) -> list[Row]:
    """Measure every row that the checkpoints allow.

    Args:
        config: its test data, and section ``test`` for what the rows leave open (``region_side`` and the like);
            ``tiles`` give a row of their own, the last one.
        baseline: checkpoints of nets without context, one for each seed.
        context: of nets with context, for the same seeds; the rows from there on are of these.
        ensemble: of the nets of the ensemble; by default all of ``context`` (or ``baseline``), if there are several.
        scales: shorter sides of multi-scale testing.
        group: classes whose mean AP is also given, as figure ``group``.
        size_bounds: sides in pixels that divide small, medium and large objects.

    Raises:
        InputError: a checkpoint without context among those with it, or the reverse; other classes; bad scales.
    """
    classes = tuple(read_checkpoint(baseline[0])["meta"]["classes"])
    if unknown := [name for name in group if name not in classes]:
        raise InputError("--group", found=", ".join(unknown), needed=f"names among {', '.join(classes)}")
    if context and len(context) != len(baseline):
        raise InputError("--context", found=f"{len(context)} checkpoints", needed=f"{len(baseline)}, as --baseline")
    said = config.said_of_nets
    if other := config.overridden - set(said):
        needed = (
            f"checkpoints tell their nets; of a model only {', '.join(marked(DetectorSettings, TESTED))}, of all nets"
        )
        raise InputError("--cfg-options", found=f"model.{min(other)}", needed=needed)
    plain = [_load(path, classes, said, context=False) for path in baseline]
    wider = [_load(path, classes, said, context=True) for path in context]
    known = dict(zip([*baseline, *context], [*plain, *wider], strict=True))
    joined = [known[path] if path in known else _load(path, classes, said) for path in ensemble]
    last = wider or plain
    joined = joined or (last if len(last) > 1 else [])
    rows = _rows(config.test, plain, wider, joined, scales)
    data = config.task.test_data(config, classes)
    how = {"size_bounds": size_bounds, "max_detections": config.test.max_detections}
    metrics = [[CocoMetric(data.annotations, **how) for _ in teams] for _, teams, _ in rows]
    return _measure(config, data, rows, metrics, group)


def _rows(
    asked: TestSettings,
    plain: list[FasterRCNN],
    wider: list[FasterRCNN],
    joined: list[FasterRCNN],
    scales: Sequence[int],
) -> list[tuple[Rung, list[list[FasterRCNN]], TestSettings]]:
    """Each row with its teams of nets, one for each seed, and how they are tested."""
    if asked.ensemble:
        raise InputError("test.ensemble", found=asked.ensemble, needed="--ensemble: it is a row of its own")
    settings = asked.updated(tiles=None)
    refined = settings.updated(**REFINED)
    pyramid = refined.updated(scales=tuple(scales))
    base, context, last = ([[net] for net in nets] for nets in (plain, wider, wider or plain))
    rows = [(RUNGS[0], base, settings), (RUNGS[1], base, refined)]
    rows += [(RUNGS[2], context, refined)] if wider else []
    rows += [(RUNGS[3], last, pyramid)]
    if joined:
        name = f"ensemble of {len(joined)} (paper: test-dev)"
        rows += [(RUNGS[4]._replace(name=name), [joined], pyramid)]
    if asked.tiles:
        tiles = Rung(f"+ tiles of {asked.tiles} px", None, None, None)
        rows += [(tiles, rows[-1][1], pyramid.updated(tiles=asked.tiles))]
    return rows


def _measure(
    config: ExperimentConfig,
    data: DetectionDataset,
    rows: Sequence[tuple[Rung, list[list[FasterRCNN]], TestSettings]],
    metrics: list[list[CocoMetric]],
    group: Sequence[str],
) -> list[Row]:
    """One pass over the data."""
    predictors = [[Predictor(nets, settings, timed=True).eval() for nets in teams] for _, teams, settings in rows]
    amp = config.run.amp
    loader = data_loader(data, config.loader)
    for images, targets in shown(loader, len(loader.batch_sampler)):
        views = Views(images, wait=True)
        for teams, own in zip(predictors, metrics, strict=True):
            for predictor, metric in zip(teams, own, strict=True):
                with autocast(amp):
                    answers = predictor.predict(images, views)
                metric.process(None, list(zip(answers, targets, strict=True)))
    return [
        _row(rung, teams, [_figures(metric, len(data), group) for metric in own])
        for (rung, _, _), teams, own in zip(rows, predictors, metrics, strict=True)
    ]


def _figures(metric: CocoMetric, images: int, group: Sequence[str]) -> dict[str, float]:
    figures = {name.removeprefix("coco/"): value for name, value in metric.evaluate(images).items()}
    if distributed.rank():
        return figures
    per_class = {row.name: row.AP for row in metric.report.per_class}
    per_class = {name: -1.0 if value is None else value for name, value in per_class.items()}  # as COCO's own figures
    if group:
        known = [per_class[name] for name in group if per_class[name] >= 0]
        figures["group"] = statistics.fmean(known) if known else -1.0
    return {**figures, **{f"class/{name}": value for name, value in per_class.items()}}


def _row(rung: Rung, teams: Sequence[Predictor], runs: list[dict[str, float]]) -> Row:
    images = max(1, sum(team.images for team in teams))  # none, where there are more processes than batches
    stages = {name: sum(team.clock.seconds[name] for team in teams) / images for name in teams[0].clock.seconds}
    return Row(*rung, runs, sum(stages.values()), stages)


def _load(path: str, classes: Sequence[str], said: dict[str, Any], *, context: bool | None = None) -> FasterRCNN:
    net = load_detector(path, classes, said)
    if context is not None and net.roi_head.has_context != context:
        kinds = {True: "a net with global context", False: "a net without global context"}
        raise InputError(f"checkpoint {path}", found=kinds[not context], needed=kinds[context])
    return fold_batchnorm(net).to(distributed.device(), memory_format=torch.channels_last).eval()


def as_markdown(rows: Sequence[Row], *, group: str = "") -> str:
    """The table: ours beside the paper's, each with its gain over the row before."""
    columns = [("APs", "small"), ("APm", "medium"), ("APl", "large"), *([("group", group)] if group else [])]
    head = ["", "paper mAP", "ours", "ours - paper", "gain (paper)", "mAP@.5 (paper)"]
    head += [name for _, name in columns] + ["s/image"]
    lines = [head]
    for before, row in zip([None, *rows[:-1]], rows, strict=True):
        gain = "" if before is None else f"{row.mean('AP') - before.mean('AP'):+.1f}{_aside(row.paper_gain, '+.1f')}"
        lines.append(
            [
                row.name,
                "" if row.paper is None else f"{row.paper:.1f}",
                _with_spread(row, "AP"),
                "" if row.paper is None else f"{row.mean('AP') - row.paper:+.1f}",
                gain,
                f"{row.mean('AP50'):.1f}{_aside(row.paper50, '.1f')}",
                *(_with_spread(row, figure) for figure, _ in columns),
                f"{row.seconds:.2f}",
            ]
        )
    return markdown(lines)


def left_out(rows: Sequence[Row]) -> list[str]:
    """A line for each row of Table 9 that is not there, with what it needs."""
    needs = {
        RUNGS[2].name: "nets with global context (--context)",
        RUNGS[4].name: "several nets of a kind (--ensemble)",
    }
    there = [row.name for row in rows]
    return [
        f"left out: {name}, which needs {need}"
        for name, need in needs.items()
        if not any(t.startswith(name) for t in there)
    ]


def _aside(paper: float | None, form: str) -> str:
    """The paper's figure in brackets, where it has one."""
    return "" if paper is None else f" ({paper:{form}})"


def _with_spread(row: Row, figure: str) -> str:
    mean, spread = row.mean(figure), row.spread(figure)
    if mean != mean:  # no object of this size
        return "-"
    return f"{mean:.1f}" + ("" if spread is None else f" ± {spread:.1f}")
