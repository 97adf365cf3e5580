"""One pass over a test set: what ``tools/eval.py`` does, and the classification tool at its end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config

from resdet.backbones.weights import load_exactly
from resdet.engine import distributed
from resdet.engine.config import describe_model, read_settings
from resdet.engine.experiment import Experiment, build_experiment, read_data, test_loader
from resdet.engine.metrics import DetectionMetric, build_metric
from resdet.engine.optim import autocast
from resdet.engine.predictor import adopt, build_ensemble, build_localizer, build_predictor, said_of_nets
from resdet.engine.progress import shown
from resdet.engine.runner import check_same, read_checkpoint
from resdet.errors import InputError
from resdet.evaluation.coco_rows import load_results


def load_experiment(config: Config, checkpoint: str | Path, *, options: Sequence[str] = ()) -> Experiment:
    """The test set and the net of a config, with the weights of a checkpoint, on the device.

    A detector or a localizer is tested as section ``test`` says.

    Args:
        config: checked, with its overrides.
        checkpoint: of the net.
        options: those overrides, of which some concern the rest of an ensemble too; see :func:`said_of_nets`.

    Raises:
        InputError: the checkpoint is of another task, architecture or set of classes than config and data.
    """
    loaded = read_checkpoint(checkpoint)
    if (task := loaded["meta"].get("task", config.task)) != config.task:
        needed = f"one of {config.task}, as config {config.filename}"
        raise InputError(f"checkpoint {checkpoint}", found=f"a net of {task}", needed=needed)
    if config.task == "detection":
        said = said_of_nets(config, options)
        config = adopt(config, loaded["meta"], checkpoint)
    experiment = build_experiment(config, training=False, classes=loaded["meta"]["classes"])
    check_same(checkpoint, loaded["meta"], classes=experiment.classes, model=describe_model(config))
    load_exactly(experiment.task, loaded["state_dict"], source=checkpoint)
    if config.task == "detection":
        experiment.task.net = build_predictor(config, experiment.net, experiment.classes, said=said)
        experiment.task.net.timed = True
    elif config.task == "localization":
        predictor = build_localizer(config, experiment.net, experiment.classes)
        experiment.task.answer_by(predictor.to(distributed.device(), memory_format=torch.channels_last).eval())
    else:
        experiment.task.net = build_ensemble(config, experiment.net, experiment.classes)
    experiment.task.to(distributed.device(), memory_format=torch.channels_last)
    return experiment


@torch.no_grad()
def evaluate(experiment: Experiment) -> dict[str, float]:
    """Figures over the whole test set, each image once over all processes."""
    experiment.task.eval()
    amp = read_settings(experiment.config, "run").amp
    loader = test_loader(experiment)
    for batch in shown(loader, len(loader.batch_sampler)):
        with autocast(amp):
            experiment.metric.process(batch, experiment.task.val_step(batch))
    return experiment.metric.evaluate(len(experiment.test_set))


def evaluate_detections(config: Config, path: str | Path) -> tuple[dict[str, float], DetectionMetric]:
    """Figures of a COCO results file on the test data of a config, and the metric that holds its report.

    Raises:
        InputError: the file is not of this data set, or the config is not of detection.
    """
    if config.task != "detection":
        raise InputError(f"config {config.filename}", found=f"task = {config.task!r}", needed="a detection config")
    dataset = read_data(config, "test_data")
    metric = build_metric(config.metric, dataset)
    return metric.score_rows(load_results(path)), metric
