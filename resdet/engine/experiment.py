"""From a checked config to the things it names: data sets, net, metric, loaders."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from torch import nn
from torch.utils.data import DataLoader, Dataset

from resdet.backbones.frozen import FrozenBatchNorm
from resdet.backbones.weights import NotFetched, load_exactly
from resdet.cpu import threads
from resdet.datasets.detection import DetectionDataset
from resdet.datasets.loading import EvaluationShare, TrainBatches, collate
from resdet.datasets.resident import ResidentBatches, ResidentDataset
from resdet.datasets.sending import Sending, raise_file_limit
from resdet.datasets.views import collate_views
from resdet.engine import distributed
from resdet.engine.checkpoints import check_same
from resdet.engine.config import ExperimentConfig
from resdet.engine.metrics import Unscored
from resdet.engine.settings import Loader
from resdet.errors import InputError, listed

logger = logging.getLogger(__name__)


class Experiment(NamedTuple):
    """What a config means."""

    config: ExperimentConfig
    train_set: Dataset | None
    test_set: Dataset
    classes: tuple[str, ...]
    net: nn.Module
    adapter: BaseModel
    """The net as mmengine sees it."""
    metric: BaseMetric


def build_experiment(config: ExperimentConfig, *, load_init: bool) -> Experiment:
    """Read the data and build the net, to train it.

    Args:
        config: checked.
        load_init: load the backbone's ``init``.

    Raises:
        InputError: data or weights are not as needed, or the two splits do not have the same classes.

    Where weights cannot be fetched, the experiment's config has ``model.fallback`` as its backbone.
    """
    threads.use(config.run.threads)
    train_set = config.task.training_data(config)
    return assemble(config, train_set, _test_set(config, tuple(train_set.classes)), load_init=load_init)


def assemble(config: ExperimentConfig, train_set: Dataset, test_set: Dataset, *, load_init: bool) -> Experiment:
    """The net of a config for data that are there; as :func:`build_experiment`."""
    classes = tuple(train_set.classes)
    torch.manual_seed(config.run.seed)
    try:
        net = build_net(config, num_classes=len(classes), load_init=load_init)
    except NotFetched as error:
        if (fallback := getattr(config.model.settings, "fallback", None)) is None:
            raise
        logger.warning("%s\n%s with the weights of the package takes its place (model.fallback)", error, fallback)
        config = replace(config, model=config.model.updated(backbone=fallback, init="pretrained"))
        net = build_net(config, num_classes=len(classes), load_init=load_init)
    adapter = config.task.trained(config, net, classes)
    return Experiment(config, train_set, test_set, classes, net, adapter, config.task.metric(config, test_set))


def load_experiment(config: ExperimentConfig, checkpoint: str | Path, *, unscored: bool = False) -> Experiment:
    """The test set and the net of a config, with the weights of a checkpoint, answering as section ``test`` says.

    Args:
        config: checked.
        checkpoint: of its net.
        unscored: a test set may have no box; there are no figures then.

    Raises:
        InputError: the checkpoint is of another task, architecture or set of classes than config and data.
    """
    threads.use(config.run.threads)
    task = config.task
    loaded = task.load(config, checkpoint)
    meta = loaded["meta"]
    if meta.get("task", task.name) != task.name:
        needed = f"one of {task.name}, as config {config.filename}"
        raise InputError(f"checkpoint {checkpoint}", found=f"a net of {meta['task']}", needed=needed)
    config = task.adopted(config, meta, checkpoint)
    classes = tuple(task.test_data(config).classes if meta["classes"] is None else meta["classes"])
    test_set = _test_set(config, classes)
    if "model" in meta:
        check_same(checkpoint, meta, classes=classes, model=(config.describe_model(), config.model))
    net = build_net(config, num_classes=len(classes), load_init=False)
    adapter = task.adapter(net)
    load_exactly(adapter, loaded["state_dict"], source=checkpoint)
    adapter = task.tested(config, adapter, classes)
    blind = unscored and isinstance(test_set, DetectionDataset) and not len(test_set.annotations.written.boxes)
    metric = Unscored(test_set.annotations) if blind else task.metric(config, test_set)
    return Experiment(config, None, test_set, classes, net, adapter, metric)


def _test_set(config: ExperimentConfig, classes: tuple[str, ...]) -> Dataset:
    """With labels in the order of ``classes``. Classes of one side alone are told, unless the config chose them.

    Raises:
        InputError: no class in common; or, without boxes, other classes.
    """
    test_set = config.task.test_data(config)
    own = tuple(test_set.classes)
    if own == classes:
        return test_set
    where = f"config {config.filename}: classes of the test data"
    if not isinstance(test_set, DetectionDataset):
        test_set = test_set if set(own) - set(classes) else config.task.test_data(config, classes)
        if tuple(test_set.classes) != classes:
            raise InputError(where, found=", ".join(test_set.classes), needed=", ".join(classes))
        return test_set
    if not set(own) & set(classes):
        raise InputError(where, found=listed(own), needed=f"at least one of {listed(classes)}")
    chosen = "classes" in config.train_data.settings.model_fields_set
    for names, told in (
        ([name for name in own if name not in classes and not chosen], "the net does not know them: left out"),
        ([name for name in classes if name not in own], "the test data lack them: they have no figures"),
    ):
        if names:
            logger.warning("%d classes (%s): %s", len(names), listed(names), told)
    return DetectionDataset(test_set.annotations.with_classes(classes))


def build_net(config: ExperimentConfig, *, num_classes: int, load_init: bool) -> nn.Module:
    """The net, with the backbone's initial weights if asked.

    Raises:
        InputError: the config says another number of classes than the data has.
    """
    said = getattr(config.model.settings, "num_classes", None)
    if said not in (None, num_classes):
        where = f"config {config.filename}, model.num_classes"
        raise InputError(where, found=said, needed=f"{num_classes}, as the data has")
    if config.backbone is not None:
        config.backbone()
    init = getattr(config.model.settings, "init", None)
    if load_init and init not in (None, "pretrained") and not Path(init).is_file():
        needed = f"weights: .safetensors, .pth, .pt or .pkl; or, to train from random ones, {_random_start(config)}"
        raise InputError(f"model.init={init}", found="no such file", needed=needed)
    if not load_init and init is not None:
        config = replace(config, model=config.model.updated(init=None))
    return config.model(num_classes=num_classes)


def check_start(experiment: Experiment) -> None:
    """Refuse random weights under frozen statistics, with which a loss soon is not finite.

    Raises:
        InputError: the net has constant BN layers, and its backbone no ``init``.
    """
    config = experiment.config
    frozen = any(isinstance(module, FrozenBatchNorm) for module in experiment.net.modules())
    if frozen and config.model.settings.init is None:
        needed = f"model.init=<weights of the backbone>; or, to train from random ones, {_random_start(config)}"
        found = "None, random weights, under BN statistics that are frozen and nobody's"
        raise InputError(f"config {config.filename}, model.init", found=found, needed=needed)


def _random_start(config: ExperimentConfig) -> str:
    """The settings with which a model trains from random weights."""
    taken, free = type(config.model.settings).model_fields, {"frozen_batchnorm": False, "frozen_stages": 0}
    return " ".join(["model.init=None", *(f"model.{name}={value}" for name, value in free.items() if name in taken)])


def train_loader(experiment: Experiment) -> Iterable:
    """Endless batches of this process.

    Raises:
        InputError: the batch cannot be split over the processes.
    """
    settings, data, world = experiment.config.loader, experiment.train_set, distributed.world_size()
    if settings.batch_size % world:
        raise InputError("loader.batch_size", found=settings.batch_size, needed=f"a multiple of {world} processes")
    batches = TrainBatches(
        len(data),
        settings.batch_size // world,
        hw=data.hw if settings.group_aspect and experiment.config.task.groups_by_aspect else None,
        seed=experiment.config.run.seed,
        rank=distributed.rank(),
        world=world,
    )
    return _loader(data, batches, settings.workers)


def test_loader(experiment: Experiment, *, kept: bool = False, most: int | None = None) -> Iterable:
    """This process's share of the test set, each image once; ``kept`` and ``most`` as for :func:`data_loader`."""
    return data_loader(experiment.test_set, experiment.config.loader, kept=kept, most=most)


def data_loader(data: Dataset, settings: Loader, *, kept: bool = False, most: int | None = None) -> Iterable:
    """This process's share of any data set, each image once.

    Args:
        data: any of ours.
        settings: section ``loader``.
        kept: loader processes wait for the next pass; they end when the loader (its ``_iterator``) goes.
        most: batches, evenly spread over the share; None: all.
    """
    share = EvaluationShare(
        len(data),
        settings.test_batch_size,
        hw=data.hw if isinstance(data, DetectionDataset) else None,
        rank=distributed.rank(),
        world=distributed.world_size(),
    )
    share = share if most is None else share.thinned(most)
    return _loader(data, share, settings.workers, kept=kept)


def _loader(data: Dataset, batches: TrainBatches | EvaluationShare, workers: int, *, kept: bool = False) -> Iterable:
    if isinstance(data, ResidentDataset):
        return ResidentBatches(data, batches, device=distributed.device())
    if workers:
        raise_file_limit()
    threads.leave_for(workers)
    return DataLoader(
        data,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=Sending(collate if isinstance(data, DetectionDataset) else collate_views),
        pin_memory=torch.cuda.is_available(),
        persistent_workers=kept and workers > 0,
    )
