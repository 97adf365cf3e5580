"""From a checked config to the things it names: data sets, net, metric, loaders."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from torch import nn
from torch.utils.data import DataLoader, Dataset

from resdet.datasets.annotations import Annotations
from resdet.datasets.detection import DetectionDataset
from resdet.datasets.loading import EvaluationShare, TrainBatches, collate
from resdet.datasets.resident import ResidentBatches, ResidentDataset
from resdet.datasets.transforms import augmentation
from resdet.datasets.views import collate_views
from resdet.engine import distributed
from resdet.engine.config import call, read_settings
from resdet.engine.metrics import build_metric
from resdet.engine.settings import Loader
from resdet.engine.tasks import ClassificationTask, DetectionTask
from resdet.errors import InputError


class Experiment(NamedTuple):
    """What a config means."""

    config: Config
    train_set: Dataset | None
    test_set: Dataset
    classes: tuple[str, ...]
    net: nn.Module
    task: BaseModel
    metric: BaseMetric


def build_experiment(
    config: Config, *, training: bool, load_init: bool = False, classes: Sequence[str] | None = None
) -> Experiment:
    """Read the data and build the net.

    Args:
        config: checked.
        training: read the training set.
        load_init: load the backbone's ``init``.
        classes: those of a checkpoint, where there is no training set.

    Raises:
        InputError: data or weights are not as needed, or the two splits do not have the same classes.
    """
    train_set = None
    if training:
        train_set = read_data(config, "train_data")
        classes = train_set.classes
    test_set = _test_set(config, tuple(classes))
    if tuple(test_set.classes) != tuple(classes):
        raise InputError(
            f"config {config.filename}: classes of the test data",
            found=", ".join(test_set.classes),
            needed=", ".join(classes),
        )
    torch.manual_seed(read_settings(config, "run").seed)
    net = build_net(config, num_classes=len(classes), load_init=load_init)
    task = (DetectionTask if config.task == "detection" else ClassificationTask)(net)
    metric = build_metric(config.metric, test_set)
    return Experiment(config, train_set, test_set, tuple(classes), net, task, metric)


def _test_set(config: Config, classes: tuple[str, ...]) -> Dataset:
    """With labels in the order of ``classes``; not silently cut down to them, unless the training data are."""
    test_set = read_data(config, "test_data")
    if test_set.classes == classes or not hasattr(test_set, "annotations"):
        return test_set
    if set(test_set.classes) - set(classes) and "classes" not in config.train_data:
        return test_set
    return read_data(config, "test_data", classes=classes)


def read_data(config: Config, section: str, *, classes: Sequence[str] | None = None) -> Dataset:
    """The data set of a section; ``classes`` fixes the order of labels where the reader leaves it open."""
    data = call(config, section, **({} if classes is None else {"classes": tuple(classes)}))
    if not isinstance(data, Annotations):
        return data
    if section == "train_data" and not len(data.boxes):
        raise InputError(data.source, found="no boxes", needed="at least one object to learn from")
    names = config.get("augmentation", ("flip",)) if section == "train_data" else ()
    return DetectionDataset(data, transform=augmentation(names))


def build_net(config: Config, *, num_classes: int, load_init: bool) -> nn.Module:
    """The net, with the backbone's initial weights if asked.

    Raises:
        InputError: the config says another number of classes than the data has.
    """
    said = config.model.get("num_classes", num_classes)
    if said != num_classes:
        raise InputError(
            f"config {config.filename}, model.num_classes", found=said, needed=f"{num_classes}, as the data has"
        )
    if "backbone" in config:
        call(config, "backbone")
    if not load_init and "init" in config.model:
        config = Config({**config.to_dict(), "model": {**config.model.to_dict(), "init": None}})
    return call(config, "model", num_classes=num_classes)


def train_loader(experiment: Experiment) -> Iterable:
    """Endless batches of this process.

    Raises:
        InputError: the batch cannot be split over the processes.
    """
    settings = read_settings(experiment.config, "loader")
    world = distributed.world_size()
    if settings.batch_size % world:
        raise InputError("loader.batch_size", found=settings.batch_size, needed=f"a multiple of {world} processes")
    data = experiment.train_set
    batches = TrainBatches(
        len(data),
        settings.batch_size // world,
        hw=data.hw if settings.group_aspect and experiment.config.task == "detection" else None,
        seed=read_settings(experiment.config, "run").seed,
        rank=distributed.rank(),
        world=world,
    )
    return _loader(data, batches, settings.workers)


def test_loader(experiment: Experiment) -> Iterable:
    """This process's share of the test set, each image once."""
    return data_loader(experiment.test_set, read_settings(experiment.config, "loader"))


def data_loader(data: Dataset, settings: Loader) -> Iterable:
    """This process's share of any data set, each image once."""
    share = EvaluationShare(
        len(data),
        settings.test_batch_size,
        hw=data.hw if isinstance(data, DetectionDataset) else None,
        rank=distributed.rank(),
        world=distributed.world_size(),
    )
    return _loader(data, share, settings.workers)


def _loader(data: Dataset, batches: TrainBatches | EvaluationShare, workers: int) -> Iterable:
    if isinstance(data, ResidentDataset):
        return ResidentBatches(data, batches, device=distributed.device())
    return DataLoader(
        data,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate if isinstance(data, DetectionDataset) else collate_views,
        pin_memory=torch.cuda.is_available(),
    )
