"""Detection as a task: boxes of COCO and VOC, Faster R-CNN, appendix B at test."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.nn.functional as F
from mmengine.model import BaseDataPreprocessor, BaseModel
from torch import Tensor
from torch.utils.data import Dataset

from resdet.cpu.folding import fold_batchnorm
from resdet.cpu.winograd import use_winograd
from resdet.datasets.annotations import Annotations
from resdet.datasets.detection import DetectionDataset
from resdet.datasets.transforms import augmentation, check_augmentation, moves_boxes
from resdet.detection.build import faster_rcnn_c4, faster_rcnn_fpn, faster_rcnn_vgg16, from_checkpoint
from resdet.detection.faster_rcnn import FasterRCNN
from resdet.detection.settings import DetectorSettings
from resdet.engine.checkpoints import load_net, net_calls
from resdet.engine.compiled import compile_parts
from resdet.engine.metrics import DetectionMetric, build_detection_metric
from resdet.engine.tasks.base import Task, with_trained_backbone
from resdet.errors import InputError, listed
from resdet.inference.predictor import Predictor
from resdet.inference.settings import TestSettings
from resdet.settings import Settings, plain, value_of_text
from resdet.structures import Target

if TYPE_CHECKING:
    from resdet.engine.config import ExperimentConfig

logger = logging.getLogger(__name__)
DETECTORS = (faster_rcnn_c4, faster_rcnn_fpn, faster_rcnn_vgg16)


class DetectionAdapter(BaseModel):
    """A detector in training and in its validations, or a predictor: losses, or detections beside their targets."""

    def __init__(self, net: FasterRCNN | Predictor) -> None:
        super().__init__(data_preprocessor=BaseDataPreprocessor(non_blocking=True))
        self.net = net

    def forward(self, images: Sequence[Tensor], targets: Sequence[Target], mode: str = "loss") -> Any:
        """``mode="loss"``: the dict of losses; ``mode="predict"``: one (Detections, Target) an image."""
        if mode == "loss":
            return self.net.loss(images, targets)
        predictor = self.net if isinstance(self.net, Predictor) else Predictor([self.net])
        return list(zip(predictor.predict(images), targets, strict=True))


class Detection(Task):
    """Faster R-CNN on data with boxes."""

    name, tool = "detection", "tools/train_det.py"
    metrics = ("coco", "voc07", "voc12")
    test_settings = TestSettings
    builders = DETECTORS
    groups_by_aspect = True
    class_layers = ("*.class_logits.*", "*.box_deltas.*")

    def check(self, config: ExperimentConfig) -> None:
        """The names of the augmentation."""
        check_augmentation(config.augmentation)

    def training_data(self, config: ExperimentConfig) -> DetectionDataset:
        """Annotated images under section ``augmentation``.

        Raises:
            InputError: data without a box.
        """
        data = read_annotations(config.train_data(), where=f"config {config.filename}, train_data")
        if data.ignore.all():
            found = f"{len(data.boxes)} boxes, all of them crowds or difficult" if len(data.boxes) else "no boxes"
            raise InputError(data.source, found=found, needed="at least one object to learn from")
        least_side = None
        if config.loader.reduce:  # the longest shorter side of an input, twice that where a crop may be half an image
            side = config.model.settings.shorter_side
            least_side = (side if isinstance(side, int) else max(side)) * (2 if moves_boxes(config.augmentation) else 1)
        return DetectionDataset(data, transform=augmentation(config.augmentation), least_side=least_side)

    def test_data(self, config: ExperimentConfig, classes: Sequence[str] | None = None) -> DetectionDataset:
        """Annotated images as they are."""
        data = config.test_data(**({} if classes is None else {"classes": tuple(classes)}))
        return DetectionDataset(read_annotations(data, where=f"config {config.filename}, test_data"))

    def few(self, config: ExperimentConfig, count: int) -> tuple[ExperimentConfig, DetectionDataset, DetectionDataset]:
        """Images with objects, at the size of the test and without augmentation."""
        data = read_annotations(config.train_data(), where=f"config {config.filename}, train_data")
        images = np.repeat(np.arange(len(data)), np.diff(data.first))
        rows = np.unique(images[~data.ignore])
        if count > len(rows):
            needed = f"at most {len(rows)}: so many training images have an object"
            raise InputError(f"--overfit with {data.source}", found=f"{count} images", needed=needed)
        rows = np.sort(np.random.default_rng(config.run.seed).permutation(rows)[:count])
        logger.info("training images: %s", listed([data.files[int(row)] for row in rows], shown=8))
        chosen, side = data.select(rows), config.model.settings.shorter_side
        model = config.model.updated(shorter_side=side if isinstance(side, int) else side[-1])
        config = replace(config, augmentation=(), model=model)
        return config, DetectionDataset(chosen), DetectionDataset(chosen)

    def metric(self, config: ExperimentConfig, data: Dataset) -> DetectionMetric:
        """COCO's or VOC's protocol."""
        return build_detection_metric(config.metric, data.annotations, max_detections=config.test.max_detections)

    def fitted(self, state: dict[str, Tensor], adapter: DetectionAdapter) -> dict[str, Tensor]:
        """Of a detector without context for one with it: the new columns are zero, so it answers as before at first."""
        if not adapter.net.roi_head.has_context:
            return state
        own = adapter.state_dict()
        narrow = [
            name
            for name, weight in state.items()
            if any(fnmatch(name, pattern) for pattern in self.class_layers)
            and weight.ndim == 2
            and name in own
            and own[name].shape == (weight.shape[0], 2 * weight.shape[1])
        ]
        if narrow:
            logger.info("context is added to a detector without it: the weights of its columns start at zero")
        return state | {name: F.pad(state[name], (0, state[name].shape[1])) for name in narrow}

    def facts(self, config: ExperimentConfig, data: DetectionDataset) -> dict[str, Any]:
        """How the net is tested, and the ids of its classes in its data."""
        test = {name: plain(getattr(config.test, name)) for name in config.test.model_fields_set}
        return {"test": test, "category_ids": data.annotations.category_ids.tolist()}

    def adapter(self, net: FasterRCNN) -> DetectionAdapter:
        """Losses and detections."""
        return DetectionAdapter(net)

    def adopted(self, config: ExperimentConfig, meta: dict[str, Any], source: str | Path) -> ExperimentConfig:
        """The net of the checkpoint for ``type=from_checkpoint``, with the arguments that the config gives."""
        if config.model.function is not from_checkpoint:
            return with_trained_backbone(config, meta)
        asked = config.model.settings
        said = {name: getattr(asked, name) for name in asked.model_fields_set if getattr(asked, name) is not None}
        model, own = net_calls(meta, DETECTORS, source, said)
        return replace(config, model=model, backbone=own, overridden=frozenset(said))

    def tested(self, config: ExperimentConfig, adapter: BaseModel, classes: tuple[str, ...]) -> BaseModel:
        """The net with the rest of its ensemble, as section ``test`` says."""
        adapter.net = build_predictor(adapter.net, config.test, classes, said=config.said_of_nets)
        adapter.net.clock.wait = True
        return adapter


def read_annotations(data: Any, *, where: str) -> Annotations:
    """Data that must have boxes.

    Raises:
        InputError: it has none.
    """
    if not isinstance(data, Annotations):
        raise InputError(where, found="data without boxes", needed="a reader of annotations, such as read_coco")
    return data


def load_detector(path: str | Path, classes: Sequence[str], said: Mapping[str, Any] | None = None) -> FasterRCNN:
    """A detector from its checkpoint alone; see :func:`resdet.engine.checkpoints.load_net`."""
    return load_net(path, classes, DETECTORS, task="detection", said=said)[0]


def open_detector(
    path: str | Path, options: Sequence[str] = (), test: Mapping[str, Any] | None = None
) -> tuple[Predictor, dict[str, Any]]:
    """A detector from its checkpoint alone, in eval mode, and what the checkpoint tells.

    Args:
        path: a checkpoint of a run, or what ``tools/publish.py`` made of one.
        options: ``model.key=value`` and ``test.key=value`` in place of what it tells.
        test: settings of section ``test``, likewise.

    Raises:
        InputError: as :func:`resdet.engine.checkpoints.load_net`, or an option that no detector has.
    """
    kinds: dict[str, type[Settings]] = {"model": DetectorSettings, "test": TestSettings}
    said: dict[str, dict[str, Any]] = {section: {} for section in kinds}
    for option in options:
        section, _, name = option.partition("=")[0].partition(".")
        if section not in kinds or not name or "=" not in option:
            needed = "model.key=value or test.key=value, as a checkpoint has no other section; or its config too"
            raise InputError(f"option {option!r}", found=f"key {option.partition('=')[0]!r}", needed=needed)
        said[section][name] = value_of_text(kinds[section], name, option.partition("=")[2])
    net, meta = load_net(path, None, DETECTORS, task="detection", said=said["model"])
    given = {**(meta.get("test") or {}), **said["test"], **(test or {})}
    settings = TestSettings.read(given, where=f"checkpoint {path}")
    return build_predictor(net, settings, meta["classes"], said=said["model"]), meta


def build_predictor(
    net: FasterRCNN, settings: TestSettings, classes: Sequence[str], *, said: Mapping[str, Any] | None = None
) -> Predictor:
    """The net and the rest of its ensemble under settings for test; their constant BN is folded.

    Args:
        net: the first.
        settings: section ``test``.
        classes: of all.
        said: arguments of the others in place of those that their checkpoints tell.
    """
    nets = [net, *(load_detector(path, classes, said) for path in settings.ensemble)]
    nets = [fold_batchnorm(each) for each in nets]
    if settings.winograd:
        nets = [use_winograd(each) for each in nets]
    return Predictor([compile_parts(each, settings.compile) for each in nets], settings).eval()
