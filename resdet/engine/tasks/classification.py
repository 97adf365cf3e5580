"""Classification as a task: folders and CIFAR, a residual net, its publication as a backbone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mmengine.model import BaseDataPreprocessor, BaseModel
from torch import Tensor, nn
from torch.utils.data import Dataset

from resdet.backbones.registry import BACKBONES
from resdet.backbones.weights import load_exactly, read_backbone, read_weights
from resdet.classification.build import classifier
from resdet.classification.classifier import Classifier
from resdet.classification.ensemble import Ensemble
from resdet.datasets.few import FewImages, draw_rows
from resdet.engine.calls import Call
from resdet.engine.checkpoints import check_same, load_net, net_calls
from resdet.engine.metrics import ClassificationMetric
from resdet.engine.publish import publish_classifier
from resdet.engine.settings import ClassifierTest
from resdet.engine.tasks.base import Task
from resdet.errors import InputError

if TYPE_CHECKING:
    from resdet.engine.config import ExperimentConfig
    from resdet.engine.experiment import Experiment

CLASSIFIERS = (classifier,)
CLASS_LAYERS = ("fc", "classifier.6", "classifier", "head.fc", "head")
"""Names of the layer with one output for each class, in our nets and in timm's and torchvision's."""


def load_classifier(path: str | Path, classes: Sequence[str]) -> Classifier:
    """A classifier from its checkpoint alone; see :func:`resdet.engine.checkpoints.load_net`."""
    return load_net(path, classes, CLASSIFIERS, task="classification")[0]


class TestCrop(NamedTuple):
    """What of an image a classifier is tested on: the centre crop of the image scaled to a shorter side."""

    __test__ = False  # pytest takes classes named Test... for tests
    crop: int
    shorter_side: int


class LoadedClassifier(NamedTuple):
    """A classifier's file, read."""

    call: Call
    """What makes the net."""
    own_backbone: Call | None
    state: dict[str, Tensor]
    """Of the net inside, under our names."""
    classes: tuple[str, ...] | None
    """None where the file does not tell them."""
    crop: TestCrop
    source: str

    def build(self) -> tuple[Classifier, int]:
        """The net with its weights, and its number of classes.

        Raises:
            InputError: the weights are of another net.
        """
        heads = [self.state[f"{name}.weight"] for name in CLASS_LAYERS if f"{name}.weight" in self.state]
        if not heads:
            raise InputError(self.source, found="no layer of classes", needed=f"one of {', '.join(CLASS_LAYERS)}")
        if self.own_backbone is not None:
            self.own_backbone()
        net = self.call.updated(init=None)(num_classes=len(heads[0]))
        load_exactly(net.net, self.state, source=self.source)
        return net, len(heads[0])


def read_classifier(path: str | Path, config: ExperimentConfig | None = None) -> LoadedClassifier:
    """A classifier from a checkpoint of a run, a published file, or a state dict of torchvision, timm or others.

    Args:
        path: of the file.
        config: of classification, whose net the file must be of; None: the file tells its net.

    Raises:
        InputError: damaged; of another net; it does not tell its net, and there is no config.
    """
    where = f"checkpoint {path}"
    if not Path(path).is_file():
        needed = "a checkpoint of a run, a published file, or a state dict of the same net"
        raise InputError(where, found="no such file", needed=needed)
    if config is not None:
        if config.backbone is not None:
            config.backbone()
        state, facts = read_backbone(config.model.settings.backbone, Path(path))
        meta = facts.get("meta", facts)
        if meta.get("task", "classification") != "classification":
            needed = f"one of classification, as config {config.filename}"
            raise InputError(where, found=f"a net of {meta['task']}", needed=needed)
        if isinstance(meta.get("model"), Mapping):
            check_same(path, meta, model=(config.describe_model(), config.model))
        call, own, crop = config.model, None, test_crop(config)
    else:
        state, facts = read_weights(path)
        meta = facts.get("meta", facts)
        if "model" not in meta and isinstance(meta.get("backbone"), str):  # published by version 0.1
            meta = {**meta, "model": {"type": "classifier", "backbone": meta["backbone"]}}
        if not isinstance(meta.get("model"), Mapping):
            raise InputError(where, found="no description of its net", needed="a config: Classifier(config, file)")
        call, own = net_calls(meta, CLASSIFIERS, path)
        view = meta.get("view")
        told = isinstance(view, Mapping) and all(type(view.get(name)) is int for name in TestCrop._fields)
        crop = TestCrop(view["crop"], view["shorter_side"]) if told else _usual_crop(call)
    classes = meta.get("classes")
    known = isinstance(classes, (list, tuple)) and all(isinstance(name, str) for name in classes)
    return LoadedClassifier(call, own, state, tuple(classes) if known else None, crop, str(path))


def test_crop(config: ExperimentConfig) -> TestCrop:
    """What of an image a config tests on."""
    said = config.test_data.settings
    if hasattr(said, "crop") and hasattr(said, "shorter_side"):
        return TestCrop(said.crop, said.shorter_side)
    return _usual_crop(config.model)


def _usual_crop(call: Call) -> TestCrop:
    """The crop that the window of the last map tells; ImageNet's nets see 8/7 of it, CIFAR's the whole image."""
    stride = BACKBONES[call.settings.backbone].strides[-1]
    crop = call.settings.window * stride
    return TestCrop(crop, round(crop * 8 / 7) if stride == 32 else crop)


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
    class_layers = tuple(f"net.net.{name}.{leaf}" for name in CLASS_LAYERS for leaf in ("weight", "bias"))

    def load(self, config: ExperimentConfig, path: str | Path) -> dict[str, Any]:
        """A checkpoint of a run, a published file, or a state dict of torchvision, timm or others."""
        loaded = read_classifier(path, config)
        classes = None if loaded.classes is None else list(loaded.classes)
        state = {f"net.net.{name}": value for name, value in loaded.state.items()}
        return {"meta": {"task": self.name, "classes": classes}, "state_dict": state}

    def facts(self, config: ExperimentConfig, data: Dataset) -> dict[str, Any]:
        """The crop of the test."""
        return {"view": test_crop(config)._asdict()}

    def training_data(self, config: ExperimentConfig) -> Dataset:
        """What section ``train_data`` makes: views and labels."""
        return config.train_data()

    def test_data(self, config: ExperimentConfig, classes: Sequence[str] | None = None) -> Dataset:
        """What section ``test_data`` makes. Labels are the places of the sorted classes, so none can be asked for."""
        return config.test_data()

    def few(self, config: ExperimentConfig, count: int) -> tuple[ExperimentConfig, Dataset, Dataset]:
        """Images of as many classes as can be, read as the test data are, but of the training split."""
        train, test = config.train_data.settings, config.test_data.settings
        both = type(train).model_fields.keys() & type(test).model_fields.keys()
        shared = [name for name in ("root", "name", "split") if name in both]
        if "split" not in shared:
            found = f"{config.test_data.function.__name__}, which has no argument split"
            needed = "test data that can be read from the training split"
            raise InputError(f"--overfit with config {config.filename}, test_data", found=found, needed=needed)
        one = {name: value for name, value in {"crops": 1, "dense": ()}.items() if name in type(test).model_fields}
        data = config.test_data.updated(**{name: getattr(train, name) for name in shared}, **one)()
        few = FewImages(data, draw_rows(data, count, config.run.seed))
        return config, few, few

    def metric(self, config: ExperimentConfig, data: Dataset) -> ClassificationMetric:
        """Top-1 and top-5."""
        return ClassificationMetric(data.classes)

    def adapter(self, net: nn.Module) -> ClassificationAdapter:
        """Loss and logits."""
        return ClassificationAdapter(net)

    def tested(self, config: ExperimentConfig, adapter: BaseModel, classes: tuple[str, ...]) -> BaseModel:
        """The net with those that section ``test`` names, which may look at mirror images too."""
        others = [load_classifier(path, classes) for path in config.test.ensemble]
        adapter.net = Ensemble([adapter.net, *others], flip=config.test.flip)
        return adapter

    def published(
        self, experiment: Experiment, work_dir: Path, metrics: dict[str, Any], evaluate: Callable[..., dict[str, float]]
    ) -> None:
        """``<backbone>.safetensors``."""
        publish_classifier(experiment, work_dir, metrics, evaluate)
