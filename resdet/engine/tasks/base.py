"""What the engine asks of a task. To add one, write a :class:`Task` and name it in ``task_named``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.utils.data import Dataset

from resdet.engine.checkpoints import read_checkpoint
from resdet.errors import InputError
from resdet.settings import Settings

if TYPE_CHECKING:
    from resdet.engine.config import ExperimentConfig
    from resdet.engine.experiment import Experiment

FEW = "a config of detection or classification; a localizer is trained on crops or regions that are drawn each time"


def with_trained_backbone(config: ExperimentConfig, meta: dict[str, Any]) -> ExperimentConfig:
    """The config with its ``model.fallback`` as the backbone where a checkpoint was trained with that."""
    settings, model = config.model.settings, meta.get("model") or {}
    fallback = getattr(settings, "fallback", None)
    if fallback is None or model.get("backbone") != fallback:
        return config
    return replace(config, model=config.model.updated(backbone=fallback))


class Task(ABC):
    """Which data, which net, which metric, what answers at test, what is published."""

    name: ClassVar[str]
    tool: ClassVar[str]
    """The tool that trains it."""
    metrics: ClassVar[tuple[str, ...]]
    """Names that ``metric`` may have in a config."""
    test_settings: ClassVar[type[Settings]]
    """Section ``test``."""
    builders: ClassVar[tuple[Callable, ...]]
    """What makes its nets: all that a checkpoint may name."""
    class_layers: ClassVar[tuple[str, ...]]
    """Patterns of the weights with one output per class, as a checkpoint names them."""

    groups_by_aspect: ClassVar[bool] = False
    """Whether training batches may hold landscape or portrait images alone (``loader.group_aspect``)."""

    def check(self, config: ExperimentConfig) -> None:
        """Refuse what no single section can see.

        Raises:
            InputError: settings that do not fit together.
        """
        if config.loader.reduce:
            needed = "a detection config; classifiers have train_data.reduce"
            raise InputError("loader.reduce", found=f"a config of {self.name}", needed=needed)

    @abstractmethod
    def training_data(self, config: ExperimentConfig) -> Dataset:
        """What is trained on, augmented."""

    @abstractmethod
    def test_data(self, config: ExperimentConfig, classes: Sequence[str] | None = None) -> Dataset:
        """What is tested on; ``classes`` fixes the order of labels where the reader leaves it open."""

    def few(self, config: ExperimentConfig, count: int) -> tuple[ExperimentConfig, Dataset, Dataset]:
        """Some training images as the test sees them, to train on and to test on (``--overfit``), and the config then.

        Args:
            config: of the training.
            count: how many, drawn by ``run.seed``.

        Raises:
            InputError: there are not so many, or the task has no such trial.
        """
        raise InputError(f"--overfit with config {config.filename}", found=f"task = {self.name!r}", needed=FEW)

    @abstractmethod
    def metric(self, config: ExperimentConfig, data: Dataset) -> BaseMetric:
        """The metric that the config names, on its test data."""

    @abstractmethod
    def adapter(self, net: nn.Module) -> BaseModel:
        """The net as mmengine sees it."""

    def trained(self, config: ExperimentConfig, net: nn.Module, classes: tuple[str, ...]) -> BaseModel:
        """The adapter in training and in its validations."""
        return self.adapter(net)

    @abstractmethod
    def tested(self, config: ExperimentConfig, adapter: BaseModel, classes: tuple[str, ...]) -> BaseModel:
        """An adapter with loaded weights, answering as section ``test`` says."""

    def load(self, config: ExperimentConfig, path: str | Path) -> dict[str, Any]:
        """A trained file for a config: ``state_dict`` of the adapter and ``meta``; a checkpoint of a run."""
        return read_checkpoint(path)

    def fitted(self, state: dict[str, Tensor], adapter: BaseModel) -> dict[str, Tensor]:
        """The weights of a trained net as the start of another one (``load_from``)."""
        return state

    def facts(self, config: ExperimentConfig, data: Dataset) -> dict[str, Any]:
        """What checkpoints tell besides task, classes and net, in plain values; ``data`` is the test set."""
        return {}

    def adopted(self, config: ExperimentConfig, meta: dict[str, Any], source: str | Path) -> ExperimentConfig:
        """The config, with the net of a checkpoint where it leaves the net to that."""
        return config

    def published(  # noqa: B027  (most tasks publish nothing)
        self, experiment: Experiment, work_dir: Path, metrics: dict[str, Any], evaluate: Callable[..., dict[str, float]]
    ) -> None:
        """What is written at the end of a training besides its checkpoints; nothing by default.

        Args:
            experiment: just trained.
            work_dir: of the run.
            metrics: of its last validation.
            evaluate: measures an experiment on its test set.
        """
