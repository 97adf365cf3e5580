"""Evaluation: what ``tools/eval.py`` does, and the classification tool at its end. mmengine's Runner drives it."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import torch

from resdet.engine import distributed
from resdet.engine.config import ExperimentConfig
from resdet.engine.experiment import Experiment, test_loader
from resdet.engine.metrics import DetectionMetric
from resdet.engine.publish import describe_test
from resdet.engine.runner import build_test_runner
from resdet.errors import InputError
from resdet.evaluation.coco_rows import load_results

logger = logging.getLogger(__name__)


@torch.no_grad()
def evaluate(experiment: Experiment, *, work_dir: str | Path | None = None, launcher: str = "none") -> dict[str, float]:
    """Metrics over the whole test set, each image once over all processes.

    Args:
        experiment: with trained weights.
        work_dir: folder of the log; None writes none.
        launcher: none, pytorch, slurm or mpi.
    """
    if distributed.rank() == 0:
        logger.info("evaluating %s", describe_test(experiment))
    with tempfile.TemporaryDirectory() as nowhere:
        runner = build_test_runner(
            experiment, test_loader(experiment), work_dir=Path(work_dir or nowhere), launcher=launcher
        )
        return runner.test()


def evaluate_detections(config: ExperimentConfig, path: str | Path) -> tuple[dict[str, float], DetectionMetric]:
    """Metrics of a COCO results file on the test data of a config, and the metric that holds its report.

    Raises:
        InputError: the file is not of this data set, or the config is not of detection.
    """
    metric = config.task.metric(config, config.task.test_data(config))
    if not isinstance(metric, DetectionMetric):
        raise InputError(f"config {config.filename}", found=f"task = {config.task.name!r}", needed="a detection config")
    return metric.score_rows(load_results(path)), metric
