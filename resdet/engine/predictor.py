"""Nets from checkpoints alone, and the predictors that a config's ``test`` section asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import nn

from resdet.backbones.custom import define_net
from resdet.backbones.folding import fold_batchnorm
from resdet.backbones.weights import load_exactly
from resdet.backbones.winograd import use_winograd
from resdet.classification.build import classifier
from resdet.classification.classifier import Classifier
from resdet.classification.ensemble import Ensemble
from resdet.detection.build import faster_rcnn_c4, faster_rcnn_fpn, faster_rcnn_vgg16
from resdet.detection.faster_rcnn import FasterRCNN
from resdet.engine.compiled import compile_parts
from resdet.engine.config import call, check_arguments, describe, read_settings, target, tested
from resdet.engine.runner import check_same, read_checkpoint
from resdet.engine.tasks import ClassificationTask, DetectionTask, LocalizationTask
from resdet.errors import InputError, nearest
from resdet.inference.predictor import Predictor
from resdet.localization.build import per_class_rpn_localizer, region_localizer
from resdet.localization.localizer import PerClassLocalizer
from resdet.localization.predictor import LocalizationPredictor
from resdet.localization.region_localizer import RegionLocalizer

BUILDERS = {
    "detection": (faster_rcnn_c4, faster_rcnn_fpn, faster_rcnn_vgg16),
    "classification": (classifier,),
    "localization": (per_class_rpn_localizer, region_localizer),
}
"""What makes the nets of a task: all that a checkpoint may name."""


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
    """The config, with the net of a checkpoint where it asks for that.

    Raises:
        InputError: the checkpoint does not tell its net; see :func:`own_config`.
    """
    if target(config, "model") is not from_checkpoint:
        return config
    own = own_config(meta, source, said=said_of_nets(config, ())).to_dict()
    return Config({**config.to_dict(), **own}, filename=config.filename)


def own_config(
    meta: dict, source: str | Path, *, task: str = "detection", said: Mapping[str, Any] | None = None
) -> Config:
    """The section ``model`` that a checkpoint tells of itself, and ``backbone`` if its net has one of its own.

    ``said`` are arguments of the model that are not its own.

    A file may choose among the functions of :data:`BUILDERS` and give them arguments that they take, except for
    ``init``, which would read another file.

    Raises:
        InputError: it tells no net, names another function, or gives it other arguments.
    """
    model = meta.get("model")
    where = f"checkpoint {source}"
    known_ones = {"shorter_side", "label_smoothing", "crop", "side"}  # one of them; of the first versions none
    if not isinstance(model, Mapping) or not known_ones & set(model):
        raise InputError(where, found="no description of its net", needed="one saved by this version")
    own = {k: v for k, v in model.items() if k not in ("define", "init")}
    parts = {"model": ({**own, **(said or {})}, BUILDERS[task])}
    if "define" in model:
        parts["backbone"] = (model["define"], (define_net,))
    for section, (part, builders) in parts.items():
        named = part.get("type") if isinstance(part, Mapping) else part
        known = {describe(function, {})["type"]: function for function in builders}
        if not isinstance(named, str) or named not in known:
            raise InputError(
                f"{where}, section {section!r}", found=f"a net made by {named!r}", needed=nearest(str(named), known)
            )
        given = {k: v for k, v in part.items() if k != "type"}
        check_arguments(known[named], given, where=where, section=section)
    return Config({section: dict(part) for section, (part, _) in parts.items()})


def said_of_nets(config: Config, options: Sequence[str]) -> dict[str, Any]:
    """What is said of every net at test, whatever its checkpoint tells: arguments of a model.

    Args:
        config: as read; one that leaves its net to the checkpoint says it in its own section ``model``.
        options: the overrides, of which those of :data:`resdet.engine.config.TESTED` count.
    """
    own = config.model.items() if target(config, "model") is from_checkpoint else ()
    return {name: value for name, value in own if name != "type" and value is not None} | tested(options)


def load_net(
    path: str | Path, classes: Sequence[str], *, task: str = "detection", said: Mapping[str, Any] | None = None
) -> nn.Module:
    """The net of a task from its checkpoint alone.

    Args:
        path: of the checkpoint.
        classes: those that it must have.
        task: of the net.
        said: arguments of the model in place of the checkpoint's, as :func:`said_of_nets` gives them.

    Raises:
        InputError: damaged, of another task or other classes, or without a description of its net; its net has the name
            of another one, or takes no such argument.
    """
    loaded = read_checkpoint(path)
    if loaded["meta"].get("task", task) != task:
        raise InputError(f"checkpoint {path}", found=f"task {loaded['meta'].get('task')!r}", needed=task)
    check_same(path, loaded["meta"], classes=classes)
    config = own_config(loaded["meta"], path, task=task, said=said)
    try:
        if "backbone" in config:
            call(config, "backbone")
        net = call(config, "model", num_classes=len(classes))
    except InputError as error:
        raise InputError(f"checkpoint {path}: {error}") from error
    adapters = {"detection": DetectionTask, "classification": ClassificationTask, "localization": LocalizationTask}
    load_exactly(adapters[task](net), loaded["state_dict"], source=path)
    return net


def build_ensemble(config: Config, net: Classifier, classes: Sequence[str]) -> nn.Module:
    """A classifier, or the ensemble of it and those that section ``test`` names."""
    others = [load_net(path, classes, task="classification") for path in read_settings(config, "test").ensemble]
    return Ensemble([net, *others]) if others else net


def build_predictor(
    config: Config, net: FasterRCNN, classes: Sequence[str], *, said: Mapping[str, Any] | None = None
) -> Predictor:
    """The net and the rest of its ensemble, with the settings of section ``test``; their constant BN is folded.

    Args:
        config: for that section.
        net: the first.
        classes: of all.
        said: of the others, as in :func:`load_net`.
    """
    settings = read_settings(config, "test")
    others = [load_net(path, classes, said=said) for path in settings.ensemble]
    nets = [fold_batchnorm(each) for each in (net, *others)]
    if settings.winograd:
        nets = [use_winograd(each) for each in nets]
    return Predictor([compile_parts(each, settings.compile) for each in nets], settings)


def build_localizer(
    config: Config, net: PerClassLocalizer | RegionLocalizer, classes: Sequence[str], *, training: bool = False
) -> LocalizationPredictor:
    """What a localization config answers with: its net and the others that it names.

    In training these are as few as can be: the net alone, which looks at the centre crop; for a second stage also the
    first, which proposes regions as section ``test`` says. The class is the true one.

    Raises:
        InputError: a checkpoint is missing, of another stage or of other classes.
    """
    settings = read_settings(config, "test")
    second = isinstance(net, RegionLocalizer)
    if training:
        settings = settings._replace(ensemble=(), second=(), classifiers=()) if second else type(settings)()
    firsts = [first_stage_of(config, classes) if second else net]
    firsts += [load_stage(path, classes, PerClassLocalizer) for path in settings.ensemble]
    seconds = [net] if second else []
    seconds += [load_stage(path, classes, RegionLocalizer) for path in settings.second]
    classifiers = [load_net(path, classes, task="classification") for path in settings.classifiers]
    for each in [*firsts, *seconds]:
        if not (training and each is net):
            fold_batchnorm(each)
    return LocalizationPredictor(firsts, second=seconds, classifiers=classifiers, settings=settings)


def first_stage_of(config: Config, classes: Sequence[str]) -> PerClassLocalizer:
    """The first stage that the config of a second one names.

    Raises:
        InputError: it names none, or the checkpoint is missing or not of a first stage for these classes.
    """
    path = read_settings(config, "regions").first
    if not path:
        raise InputError("regions.first", found="nothing", needed="a checkpoint of the first stage")
    return load_stage(path, classes, PerClassLocalizer)


def load_stage(path: str | Path, classes: Sequence[str], kind: type[nn.Module]) -> nn.Module:
    """A localizer of one stage from its checkpoint alone.

    Raises:
        InputError: as :func:`load_net`; the other stage's.
    """
    net, names = load_net(path, classes, task="localization"), {PerClassLocalizer: "first", RegionLocalizer: "second"}
    if not isinstance(net, kind):
        raise InputError(f"checkpoint {path}", found=f"a {names[type(net)]} stage", needed=f"a {names[kind]} stage")
    return net
