"""Classification as a task: folders and CIFAR, a residual net, its publication as a backbone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine.model import BaseDataPreprocessor, BaseModel
from torch import Tensor, nn
from torch.utils.data import Dataset

from resdet.classification.build import classifier
from resdet.classification.classifier import Classifier
from resdet.classification.ensemble import Ensemble
from resdet.engine.checkpoints import load_net
from resdet.engine.metrics import ClassificationMetric
from resdet.engine.publish import publish_classifier
from resdet.engine.settings import ClassifierTest
from resdet.engine.tasks.base import Task

if TYPE_CHECKING:
    from resdet.engine.config import ExperimentConfig
    from resdet.engine.experiment import Experiment

CLASSIFIERS = (classifier,)


def load_classifier(path: str | Path, classes: Sequence[str]) -> Classifier:
    """A classifier from its checkpoint alone; see :func:`resdet.engine.checkpoints.load_net`."""
    return load_net(path, classes, CLASSIFIERS, task="classification")


class ClassificationAdapter(BaseModel):
    """A classifier in training: its loss, or logits beside the labels."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(data_preprocessor=BaseDataPreprocessor(non_blocking=True))
        self.net = net

    def forward(self, images: Tensor, labels: Tensor, mode: str = "loss") -> Any:
        """``mode="loss"``: the dict of losses; ``mode="predict"``: one (logits, labels) a batch."""
        if mode == "loss":
            return self.net.loss(images, labels)
        return [(self.net.predict(images), labels)]


class Classification(Task):
    """A residual net on labelled images."""

    name, tool = "classification", "tools/train_cls.py"
    metrics = ("classification",)
    test_settings = ClassifierTest
    builders = CLASSIFIERS
    class_layers = ("net.net.fc.*", "net.net.classifier.6.*")

    def training_data(self, config: ExperimentConfig) -> Dataset:
        """What section ``train_data`` makes: views and labels."""
        return config.train_data()

    def test_data(self, config: ExperimentConfig, classes: Sequence[str] | None = None) -> Dataset:
        """What section ``test_data`` makes. Labels are the places of the sorted classes, so none can be asked for."""
        return config.test_data()

    def metric(self, config: ExperimentConfig, data: Dataset) -> ClassificationMetric:
        """Top-1 and top-5."""
        return ClassificationMetric(data.classes)

    def adapter(self, net: nn.Module) -> ClassificationAdapter:
        """Loss and logits."""
        return ClassificationAdapter(net)

    def tested(self, config: ExperimentConfig, adapter: BaseModel, classes: tuple[str, ...]) -> BaseModel:
        """The net, or the ensemble of it and those that section ``test`` names."""
        others = [load_classifier(path, classes) for path in config.test.ensemble]
        if others:
            adapter.net = Ensemble([adapter.net, *others])
        return adapter

    def published(
        self, experiment: Experiment, work_dir: Path, metrics: dict[str, Any], evaluate: Callable[..., dict[str, float]]
    ) -> None:
        """``<backbone>.safetensors``."""
        publish_classifier(experiment, work_dir, metrics, evaluate)
