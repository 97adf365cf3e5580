"""The end of a classification run: a backbone with exact BN statistics, as one file that detectors start from."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from resdet.backbones.published import publish
from resdet.backbones.statistics import compute_batchnorm_statistics
from resdet.backbones.weights import load_exactly
from resdet.datasets.loading import EvaluationShare
from resdet.datasets.sending import Sending
from resdet.datasets.views import collate_views
from resdet.engine import distributed
from resdet.engine.checkpoints import read_checkpoint
from resdet.errors import InputError
from resdet.evaluation.report import provenance, write_json

if TYPE_CHECKING:
    from resdet.engine.experiment import Experiment

logger = logging.getLogger(__name__)
VIEW = ("crop", "shorter_side", "crops", "dense")
"""Arguments of test data that say what of an image is seen."""
Evaluate = Callable[..., dict[str, float]]


def publish_classifier(experiment: Experiment, work_dir: Path, metrics: dict[str, Any], evaluate: Evaluate) -> None:
    """Appendix A's step between the two tasks: BN statistics over the training set, then frozen for detection.

    A checkpoint gets them, is tested once more, and becomes ``<backbone>.safetensors``. ``metrics.json`` holds both the
    metrics of the last step and those of what was published.

    Args:
        experiment: just trained.
        work_dir: of the run.
        metrics: of its last validation.
        evaluate: measures an experiment on its test set.
    """
    config = experiment.config
    distributed.wait()  # for rank 0, which writes it
    began = time.perf_counter()
    logger.info("publishing: BN statistics over the training images, then a test of %s", describe_test(experiment))
    source = work_dir / f"{config.publish.checkpoint}.pth"
    load_exactly(experiment.adapter, read_checkpoint(source)["state_dict"], source=source)
    device = next(experiment.adapter.parameters()).device
    images = compute_batchnorm_statistics(experiment.net, _statistics_batches(experiment), device=device)
    half = [p for p in experiment.net.net.parameters() if p.dim() > 1] if config.publish.half else []
    for parameter in half:
        parameter.data = parameter.data.half().float()
    published = evaluate(experiment)
    name = config.model.settings.backbone
    facts = {
        "backbone": name,
        "classes": list(experiment.classes),
        "figures": published,
        "checkpoint": source.name,
        "statistics_images": images,
        "config": config.text,
        "model": config.describe_model(),
        **config.task.facts(config, experiment.test_set),
    }
    if distributed.rank() == 0:
        rounded = {parameter.data_ptr() for parameter in half}
        state = {k: v.half() if v.data_ptr() in rounded else v for k, v in experiment.net.net.state_dict().items()}
        path = publish(work_dir / f"{name.rpartition('/')[2]}.safetensors", state, facts)  # timm/NAME is NAME
        record = provenance(config.filename, path, seed=config.run.seed, config_text=config.text)
        both = {"figures": metrics, "published": published}
        error, seconds = 100 * published["top1_error"], time.perf_counter() - began
        logger.info("published %s: top-1 error %.2f%% (%s), %.0f s", path, error, source.name, seconds)
        content = {**both, "classes": experiment.classes, "statistics_images": images, **record}
        write_json(work_dir / "metrics.json", content)
    distributed.wait()


def publish_net(checkpoint: str | Path, out: str | Path, *, half: bool = False, licence: str = "") -> Path:
    """A detector or localizer of a run as one file for others, which :class:`resdet.Detector` and all tools read.

    Args:
        checkpoint: of the run.
        out: ends in ``.safetensors``.
        half: weights of convolutions and linear layers as 16-bit floats.
        licence: under which others may use it.

    Returns:
        ``out``.

    Raises:
        InputError: a classifier, which its training publishes; or as :func:`resdet.backbones.published.publish`.
    """
    loaded = read_checkpoint(checkpoint)
    meta = loaded["meta"]
    if meta.get("task") == "classification":
        needed = "NAME.safetensors in its work dir, which training has published"
        raise InputError(f"checkpoint {checkpoint}", found="a classifier", needed=needed)
    state = {k: v.half() if half and v.dim() > 1 else v for k, v in loaded["state_dict"].items()}
    own = ("optimizer", "settings", "warmup", "without_better", "validated", "best")  # of a run that goes on
    facts = {"meta": {k: v for k, v in meta.items() if k not in own}, "licence": licence, "half": half}
    return publish(out, state, facts)


def describe_test(experiment: Experiment) -> str:
    """What a test looks at, in words: images, classes, view."""
    config = experiment.config
    view = config.test_data.settings
    shown = [f"{name} {value}" for name in VIEW if (value := getattr(view, name, None)) not in (None, ())]
    shown += ["mirrored too"] if getattr(config.test, "flip", False) else []
    return ", ".join([f"{len(experiment.test_set)} images", f"{len(experiment.classes)} classes", *shown])


def _statistics_batches(experiment: Experiment) -> Iterator[Tensor]:
    """Images of the training set as they are trained on, drawn at random, spread evenly over the processes.

    The order counts: the layers before one normalise by their batch, and folders are sorted by class, so that batches
    in their order would each hold the images of one or two classes.
    """
    data, config = experiment.train_set, experiment.config
    limit = config.publish.statistics_images
    count = len(data) if limit is None else min(limit, len(data))
    rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:count].tolist()
    share = EvaluationShare(count, 64, rank=distributed.rank(), world=distributed.world_size())
    picked = torch.utils.data.Subset(data, rows)
    loader = torch.utils.data.DataLoader(
        picked, batch_sampler=share, num_workers=config.loader.workers, collate_fn=Sending(collate_views)
    )
    for images, _ in loader:
        yield images
