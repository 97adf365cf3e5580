"""Localization as a task (appendix C): the first stage on crops, the second on regions of the first one's proposals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from mmengine.model import BaseDataPreprocessor, BaseModel
from torch import Tensor, nn
from torch.utils.data import Dataset

from resdet.cpu.folding import fold_batchnorm
from resdet.datasets.detection import DetectionDataset
from resdet.datasets.loc_view import LocalizationCrop
from resdet.datasets.regions import RegionDataset
from resdet.engine import distributed
from resdet.engine.checkpoints import load_net
from resdet.engine.metrics import LocalizationMetric
from resdet.engine.proposals import training_proposals
from resdet.engine.tasks.base import Task
from resdet.engine.tasks.classification import load_classifier
from resdet.engine.tasks.detection import read_annotations
from resdet.errors import InputError
from resdet.localization.build import per_class_rpn_localizer, region_localizer
from resdet.localization.localizer import PerClassLocalizer
from resdet.localization.predictor import LocalizationPredictor
from resdet.localization.region_localizer import RegionLocalizer
from resdet.localization.settings import LocalizationTest
from resdet.structures import RegionTarget, Target

if TYPE_CHECKING:
    from resdet.engine.config import ExperimentConfig

LOCALIZERS = (per_class_rpn_localizer, region_localizer)
STAGES = {PerClassLocalizer: "first", RegionLocalizer: "second"}


class LocalizationAdapter(BaseModel):
    """A localizer of either stage in training: its losses, or boxes beside the targets they answer.

    Args:
        net: what is trained, and saved.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__(data_preprocessor=BaseDataPreprocessor(non_blocking=True))
        self.net = net
        self._predictor: tuple[LocalizationPredictor, ...] = ()  # in a tuple: not a module of this one

    def answer_by(self, predictor: LocalizationPredictor) -> LocalizationAdapter:
        """Take a predictor, of which ``net`` is a part. Further nets in it are neither trained nor saved."""
        self._predictor = (predictor.to(distributed.device(), memory_format=torch.channels_last).eval(),)
        return self

    def forward(self, images: Sequence[Tensor], targets: Sequence[Target | RegionTarget], mode: str = "loss") -> Any:
        """``mode="loss"``: the dict of losses; ``mode="predict"``: an image's (box of its class, pairs, Target).

        The box is (4,), and None where the classes are predicted; else the pairs, Localizations, are.
        """
        if mode == "loss":
            return self.net.loss(images, targets)
        (predictor,) = self._predictor
        if predictor.classifier is not None:
            return [(None, answer, target) for answer, target in zip(predictor.predict(images), targets, strict=True)]
        answers = predictor.predict(images, [target.labels[~target.ignore][:1] for target in targets])
        return [(answer.boxes[0], None, target) for answer, target in zip(answers, targets, strict=True)]


class Localization(Task):
    """Per-class RPN and R-CNN on ILSVRC's localization data."""

    name, tool = "localization", "tools/train_loc.py"
    metrics = ("localization",)
    test_settings = LocalizationTest
    builders = LOCALIZERS
    class_layers = ("net.rpn.objectness.*", "net.rpn.deltas.*", "net.scores.*", "net.deltas.*")

    def check(self, config: ExperimentConfig) -> None:
        """Each stage has a section of its own."""
        super().check(config)
        other, whose = ("crop", "first") if config.model.function is region_localizer else ("regions", "second")
        if other in config.given:
            needed = f"no section {other!r}, which is of a {whose} stage"
            raise InputError(f"config {config.filename}", found=f"section {other!r}", needed=needed)

    def training_data(self, config: ExperimentConfig) -> DetectionDataset:
        """Crops for a first stage, regions of its proposals for a second one."""
        data = read_annotations(config.train_data(), where=f"config {config.filename}, train_data")
        if not len(data.boxes):
            raise InputError(data.source, found="no boxes", needed="at least one object to learn from")
        if config.model.function is not region_localizer:
            crop = config.crop
            view = LocalizationCrop(
                crop=config.model.settings.crop, **{k: getattr(crop, k) for k in type(crop).model_fields}
            )
            return DetectionDataset(data, transform=view)
        regions = config.regions
        how = {"positive_fraction": regions.positive_fraction, "flip": regions.flip, "colour_std": regions.colour_std}
        proposals = training_proposals(config, first_stage(regions.first, data.classes), data)
        return RegionDataset(data, proposals, count=regions.per_image, **how)

    def test_data(self, config: ExperimentConfig, classes: Sequence[str] | None = None) -> DetectionDataset:
        """Annotated images as they are."""
        data = config.test_data(**({} if classes is None else {"classes": tuple(classes)}))
        return DetectionDataset(read_annotations(data, where=f"config {config.filename}, test_data"))

    def metric(self, config: ExperimentConfig, data: Dataset) -> LocalizationMetric:
        """Errors of the true class or of predicted ones."""
        return LocalizationMetric(data.classes)

    def adapter(self, net: nn.Module) -> LocalizationAdapter:
        """Losses and boxes."""
        return LocalizationAdapter(net)

    def trained(self, config: ExperimentConfig, net: nn.Module, classes: tuple[str, ...]) -> LocalizationAdapter:
        """The net alone at the centre crop; a second stage with the first, which proposes as section ``test`` says."""
        if isinstance(net, RegionLocalizer):
            settings = config.test.updated(ensemble=(), second=(), classifiers=())
            predictor = build_localizer(first_stage(config.regions.first, classes), settings, classes, seconds=(net,))
        else:
            predictor = LocalizationPredictor([net], settings=LocalizationTest())
        return LocalizationAdapter(net).answer_by(predictor)

    def tested(self, config: ExperimentConfig, adapter: BaseModel, classes: tuple[str, ...]) -> BaseModel:
        """The net and the others that section ``test`` names."""
        net = adapter.net
        if isinstance(net, RegionLocalizer):
            first, seconds = first_stage(config.regions.first, classes), (fold_batchnorm(net),)
        else:
            first, seconds = net, ()
        return adapter.answer_by(build_localizer(first, config.test, classes, seconds=seconds))


def build_localizer(
    first: PerClassLocalizer, settings: LocalizationTest, classes: Sequence[str], *, seconds: Sequence[nn.Module] = ()
) -> LocalizationPredictor:
    """A first stage, whose constant BN is folded, with the further nets that the settings name.

    Args:
        first: of the first stage.
        settings: section ``test``.
        classes: K names.
        seconds: second stages that are there already.

    Raises:
        InputError: a checkpoint is missing, of another stage or of other classes.
    """
    firsts = [
        fold_batchnorm(net) for net in (first, *(load_stage(p, classes, PerClassLocalizer) for p in settings.ensemble))
    ]
    more = [fold_batchnorm(load_stage(path, classes, RegionLocalizer)) for path in settings.second]
    classifiers = [load_classifier(path, classes) for path in settings.classifiers]
    return LocalizationPredictor(firsts, second=[*seconds, *more], classifiers=classifiers, settings=settings)


def first_stage(path: str, classes: Sequence[str]) -> PerClassLocalizer:
    """The first stage that the config of a second one names.

    Raises:
        InputError: it names none, or the checkpoint is missing or not of a first stage for these classes.
    """
    if not path:
        raise InputError("regions.first", found="nothing", needed="a checkpoint of the first stage")
    return load_stage(path, classes, PerClassLocalizer)


def load_stage(path: str | Path, classes: Sequence[str], kind: type[nn.Module]) -> nn.Module:
    """A localizer of one stage from its checkpoint alone.

    Raises:
        InputError: as :func:`resdet.engine.checkpoints.load_net`; the other stage's.
    """
    net, _ = load_net(path, classes, LOCALIZERS, task="localization")
    if not isinstance(net, kind):
        raise InputError(f"checkpoint {path}", found=f"a {STAGES[type(net)]} stage", needed=f"a {STAGES[kind]} stage")
    return net
