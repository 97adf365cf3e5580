"""Nets from checkpoints alone, and the predictor that a config's ``test`` section asks for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config
from torch import nn

from resdet.backbones.weights import load_exactly
from resdet.classification.classifier import Classifier
from resdet.classification.ensemble import Ensemble
from resdet.detection.faster_rcnn import FasterRCNN
from resdet.engine.config import call, describe, read_settings, target
from resdet.engine.runner import check_same, read_checkpoint
from resdet.engine.tasks import ClassificationTask, DetectionTask
from resdet.errors import InputError
from resdet.inference.predictor import Predictor


def from_checkpoint(
    *,
    shorter_side: int | None = None,
    longer_side: int | None = None,
    test_proposals: tuple[int, int] | None = None,
    score_threshold: float | None = None,
    nms_iou: float | None = None,
    max_per_image: int | None = None,
) -> FasterRCNN:
    """The ``type`` of a model section that leaves the net to the checkpoint: any net of the same classes.

    Args:
        shorter_side: another than in training, as all that follow.
        longer_side: its bound.
        test_proposals: of the RPN.
        score_threshold: of detections.
        nms_iou: of detections.
        max_per_image: at most so many.

    Raises:
        InputError: there is no checkpoint, as in training.
    """
    raise InputError("model", found="type=from_checkpoint", needed="a net, as type=faster_rcnn_fpn, to train")


def adopt(config: Config, meta: dict, source: str | Path) -> Config:
    """The config, with the net of a checkpoint where it asks for that."""
    if target(config, "model") is not from_checkpoint:
        return config
    said = {k: v for k, v in config.model.items() if k != "type" and v is not None}
    model = own_model(meta, source)
    own = {"backbone": model.pop("define")} if "define" in model else {}
    return Config({**config.to_dict(), **own, "model": {**model, **said}}, filename=config.filename)


def own_model(meta: dict, source: str | Path) -> dict:
    """The model section that a checkpoint tells of itself.

    Raises:
        InputError: it tells none, or names a function from outside this package, which a file may not choose.
    """
    model = meta.get("model") or {}
    where = f"checkpoint {source}"
    if not {"shorter_side", "label_smoothing"} & set(model):  # files of the first versions tell less
        raise InputError(where, found="no description of its net", needed="one saved by this version")
    for part in (model, model.get("define", {"type": "resdet.backbones."})):
        if not str(part.get("type")).startswith(("resdet.detection.", "resdet.classification.", "resdet.backbones.")):
            raise InputError(where, found=f"a net made by {part.get('type')!r}", needed="one of this package")
    return dict(model)


def load_net(path: str | Path, classes: Sequence[str], *, task: str = "detection") -> nn.Module:
    """A detector or a classifier from its checkpoint alone.

    Raises:
        InputError: damaged, of another task or other classes, or without a description of its net.
    """
    loaded = read_checkpoint(path)
    if loaded["meta"].get("task") != task:
        raise InputError(f"checkpoint {path}", found=f"task {loaded['meta'].get('task')!r}", needed=task)
    check_same(path, loaded["meta"], classes=classes)
    model = own_model(loaded["meta"], path)
    own = {"backbone": model.pop("define")} if "define" in model else {}
    config = Config({"model": model, **own})
    function = target(config, "model")
    unknown = sorted(config.model.keys() - {"type"} - describe(function, {}).keys() - {"backbone", "num_classes"})
    if own:
        call(config, "backbone")
    if unknown:
        raise InputError(f"checkpoint {path}", found=f"settings {unknown}", needed="those of this version")
    net = call(config, "model", num_classes=len(classes))
    adapter = DetectionTask if task == "detection" else ClassificationTask
    load_exactly(adapter(net), loaded["state_dict"], source=path)
    return net


def build_ensemble(config: Config, net: Classifier, classes: Sequence[str]) -> nn.Module:
    """A classifier, or the ensemble of it and those that section ``test`` names."""
    others = [load_net(path, classes, task="classification") for path in read_settings(config, "test").ensemble]
    return Ensemble([net, *others]) if others else net


def build_predictor(config: Config, net: FasterRCNN, classes: Sequence[str]) -> Predictor:
    """The net and the rest of its ensemble, with the settings of section ``test``."""
    settings = read_settings(config, "test")
    return Predictor([net, *(load_net(path, classes) for path in settings.ensemble)], settings)
