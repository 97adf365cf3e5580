"""From a checked config to the things it names: data sets, net, metric, loaders."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from torch import nn
from torch.utils.data import DataLoader, Dataset

from resdet.backbones.frozen import FrozenBatchNorm
from resdet.datasets.annotations import Annotations
from resdet.datasets.detection import DetectionDataset
from resdet.datasets.loading import EvaluationShare, TrainBatches, collate
from resdet.datasets.loc_view import LocalizationCrop
from resdet.datasets.regions import RegionDataset
from resdet.datasets.resident import ResidentBatches, ResidentDataset
from resdet.datasets.transforms import augmentation
from resdet.datasets.views import collate_views
from resdet.engine import distributed
from resdet.engine.config import call, describe, read_settings, target
from resdet.engine.metrics import build_metric
from resdet.engine.predictor import build_localizer
from resdet.engine.proposals import training_proposals
from resdet.engine.settings import Loader
from resdet.engine.tasks import ClassificationTask, DetectionTask, LocalizationTask
from resdet.errors import InputError
from resdet.localization.build import region_localizer


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
    task = _task(config, net, tuple(classes), training=training)
    metric = build_metric(config.metric, test_set)
    return Experiment(config, train_set, test_set, tuple(classes), net, task, metric)


def _task(config: Config, net: nn.Module, classes: tuple[str, ...], *, training: bool) -> BaseModel:
    if config.task != "localization":
        return (DetectionTask if config.task == "detection" else ClassificationTask)(net)
    task = LocalizationTask(net)
    if training:
        task.answer_by(build_localizer(config, net, classes, training=True).to(distributed.device()).eval())
    return task


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
    if config.task != "detection" and read_settings(config, "loader").reduce:
        needed = "a detection config; classifiers have train_data.reduce"
        raise InputError("loader.reduce", found=f"a config of {config.task}", needed=needed)
    if not isinstance(data, Annotations):
        if config.task == "localization":
            needed = "data with boxes, such as read_imagenet_loc"
            raise InputError(f"config {config.filename}, {section}", found="data without boxes", needed=needed)
        return data
    if section == "train_data" and not len(data.boxes):
        raise InputError(data.source, found="no boxes", needed="at least one object to learn from")
    if section == "train_data" and config.task == "localization":
        return _localization_set(config, data)
    if section != "train_data":
        return DetectionDataset(data)
    names = config.get("augmentation", ("flip",))
    least_side = _longest_input(config, names) if read_settings(config, "loader").reduce else None
    return DetectionDataset(data, transform=augmentation(names), least_side=least_side)


def _longest_input(config: Config, names: Sequence[str]) -> int:
    """The longest shorter side that the net trains at, twice that where a crop may be half of the image."""
    side = describe(target(config, "model"), config.model)["shorter_side"]
    return (side if isinstance(side, int) else max(side)) * (2 if "crop" in names else 1)


def _localization_set(config: Config, data: Annotations) -> DetectionDataset:
    """Crops for a first stage, regions of its proposals for a second one."""
    model, crop, regions = target(config, "model"), *(read_settings(config, name) for name in ("crop", "regions"))
    if model is region_localizer:
        _refuse(config, "crop", "of a first stage")
        how = {"positive_fraction": regions.positive_fraction, "flip": regions.flip, "colour_std": regions.colour_std}
        return RegionDataset(data, training_proposals(config, data), count=regions.per_image, **how)
    _refuse(config, "regions", "of a second stage")
    side = describe(model, config.model)["crop"]
    return DetectionDataset(data, transform=LocalizationCrop(crop=side, **crop._asdict()))


def _refuse(config: Config, section: str, whose: str) -> None:
    if section in config:
        needed = f"no section {section!r}, which is {whose}"
        raise InputError(f"config {config.filename}", found=f"section {section!r}", needed=needed)


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
    init = config.model.get("init")
    if load_init and init not in (None, "pretrained") and not Path(init).is_file():
        needed = f"weights: .safetensors, .pth, .pt or .pkl; or, to train from random ones, {_random_start(config)}"
        raise InputError(f"model.init={init}", found="no such file", needed=needed)
    if not load_init and "init" in config.model:
        config = Config({**config.to_dict(), "model": {**config.model.to_dict(), "init": None}})
    return call(config, "model", num_classes=num_classes)


def check_start(experiment: Experiment) -> None:
    """Refuse random weights under frozen statistics, with which a loss soon is not finite.

    Raises:
        InputError: the net has constant BN layers, and its backbone no ``init``.
    """
    config = experiment.config
    frozen = any(isinstance(module, FrozenBatchNorm) for module in experiment.net.modules())
    if frozen and config.model.get("init") is None:
        needed = f"model.init=<weights of the backbone>; or, to train from random ones, {_random_start(config)}"
        found = "None, random weights, under BN statistics that are frozen and nobody's"
        raise InputError(f"config {config.filename}, model.init", found=found, needed=needed)


def _random_start(config: Config) -> str:
    """The settings with which a model trains from random weights."""
    taken = inspect.signature(target(config, "model")).parameters
    free = {"frozen_batchnorm": False, "frozen_stages": 0}
    return " ".join(["model.init=None", *(f"model.{name}={value}" for name, value in free.items() if name in taken)])


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


def test_loader(experiment: Experiment, *, kept: bool = False) -> Iterable:
    """This process's share of the test set, each image once; ``kept`` as for :func:`data_loader`."""
    return data_loader(experiment.test_set, read_settings(experiment.config, "loader"), kept=kept)


def data_loader(data: Dataset, settings: Loader, *, kept: bool = False) -> Iterable:
    """This process's share of any data set, each image once.

    Args:
        data: any of ours.
        settings: section ``loader``.
        kept: loader processes wait for the next pass; they end when the loader (its ``_iterator``) goes.
    """
    share = EvaluationShare(
        len(data),
        settings.test_batch_size,
        hw=data.hw if isinstance(data, DetectionDataset) else None,
        rank=distributed.rank(),
        world=distributed.world_size(),
    )
    return _loader(data, share, settings.workers, kept=kept)


def _loader(data: Dataset, batches: TrainBatches | EvaluationShare, workers: int, *, kept: bool = False) -> Iterable:
    if isinstance(data, ResidentDataset):
        return ResidentBatches(data, batches, device=distributed.device())
    return DataLoader(
        data,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate if isinstance(data, DetectionDataset) else collate_views,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=kept and workers > 0,
    )
