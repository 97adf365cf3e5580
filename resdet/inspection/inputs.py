"""The data and the results of a report, wherever they come from: a config, an annotation file, a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from resdet.datasets.annotations import find_images
from resdet.datasets.coco_json import load_coco_json
from resdet.engine.config import load_config
from resdet.engine.evaluate import evaluate
from resdet.engine.experiment import load_experiment
from resdet.engine.metrics import DetectionMetric
from resdet.errors import InputError
from resdet.evaluation.coco_curves import CocoFound
from resdet.evaluation.coco_rows import CocoTruth, load_results, read_found, read_truth


class InspectedData(NamedTuple):
    """A data set that detections are held against."""

    source: str
    truth: CocoTruth
    classes: list[str]
    """K names by label, so by rising category id."""
    files: list[str] | None
    """(N) paths, by rising image id; None: there are no images to show."""


def open_data(path: str | Path, *, images: str | Path | None = None, options: Sequence[str] = ()) -> InspectedData:
    """The test data of a config or of a run, or an annotation file.

    Args:
        path: a config (``.py``), the work dir of a run, or a COCO annotation file.
        images: folder of the images of an annotation file; None shows none.
        options: overrides of the config.

    Raises:
        InputError: nothing of that kind, or data that are not sound.
    """
    path = Path(path)
    if path.suffix == ".json" and path.is_file():
        content = load_coco_json(path)
        rows = sorted(content["images"], key=lambda row: row["id"])
        files = None
        if images is not None:
            names = find_images(str(images), [row["file_name"] for row in rows], source=str(path))
            files = [str(Path(images) / name) for name in names]
        return _data(str(path), read_truth(content), files)
    if images is not None:
        raise InputError(f"--images {images}", found=f"data of {path}, which tells its images", needed="no --images")
    config = load_config(run_config(path) if path.is_dir() else path, options)
    data = config.task.test_data(config)
    metric = config.task.metric(config, data)
    if not isinstance(metric, DetectionMetric):
        raise InputError(f"config {path}", found=f"task = {config.task.name!r}", needed="a detection config")
    known = metric.annotations
    files = [known.path(int(row)) for row in known.image_ids.argsort()]
    return _data(known.source, metric.truth, files)


def open_detections(path: str | Path, data: InspectedData, *, options: Sequence[str] = ()) -> CocoFound:
    """Detections of a COCO results file, or those that the net of a run makes now.

    Args:
        path: a results file, or the work dir of a run, whose ``best.pth`` (else ``last.pth``) is asked.
        data: what they are held against.
        options: overrides of the run's config.

    Raises:
        InputError: the file or the run is not sound, or is of other data.
    """
    path = Path(path)
    if not path.is_dir():
        return read_found(load_results(path), data.truth)
    config = load_config(run_config(path), options)
    checkpoints = [path / name for name in ("best.pth", "last.pth") if (path / name).is_file()]
    if not checkpoints:
        raise InputError(f"run {path}", found="neither best.pth nor last.pth", needed="a run that wrote a checkpoint")
    experiment = load_experiment(config, checkpoints[0])
    if not isinstance(experiment.metric, DetectionMetric):
        raise InputError(f"run {path}", found=f"task = {config.task.name!r}", needed="a run of detection")
    evaluate(experiment)
    return read_found(experiment.metric.rows, data.truth)


def run_config(work_dir: Path) -> Path:
    """The config that a run keeps in its work dir.

    Raises:
        InputError: there is none, or more than one.
    """
    configs = sorted(work_dir.glob("*.py"))
    if len(configs) != 1:
        found = ", ".join(path.name for path in configs) or "no config (*.py)"
        raise InputError(f"work dir {work_dir}", found=found, needed="the work dir of one run of tools/train_det.py")
    return configs[0]


def _data(source: str, truth: CocoTruth, files: list[str] | None) -> InspectedData:
    return InspectedData(source, truth, [truth.names[key] for key in sorted(truth.names)], files)
