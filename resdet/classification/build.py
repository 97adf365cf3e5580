"""A classification net from its settings. Configs name the function."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field, model_validator
from torchvision.transforms import v2

from resdet.backbones.checkpointing import checkpoint_blocks
from resdet.backbones.resnet import zero_init_residual
from resdet.backbones.stochastic_depth import stochastic_depth
from resdet.backbones.weights import init_backbone
from resdet.classification.classifier import IMAGENET_MEAN, IMAGENET_STD, Classifier
from resdet.errors import InputError
from resdet.settings import Changeable, Classes, Count, Fraction, NotNegative, Positive, Settings, takes_settings


class ClassifierSettings(Settings):
    """A net of the registry over normalised images."""

    section: ClassVar[str] = "model"
    backbone: str
    """A name of ``BACKBONES``."""
    num_classes: Changeable[Classes | None] = None
    """K; None follows the data."""
    init: Changeable[str | None] = None
    """Weights to go on from: a file, ``"pretrained"`` (timm/ and torchvision/ names), or None for He's
    initialisation."""
    new_head: Changeable[bool] = False
    """Leave the linear layer random whatever ``init`` holds, as for other classes than the file's."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Of R, G, B, on the scale 0-255."""
    std: tuple[Positive, Positive, Positive] = IMAGENET_STD
    """Likewise."""
    window: Changeable[Count] = 7
    """Side in cells of the last map that the net was trained with, for dense testing: 7 of crops of 224."""
    label_smoothing: Changeable[Annotated[float, Field(ge=0, lt=1)]] = 0.0
    """Share of the target spread evenly over the classes."""
    mixup: Changeable[NotNegative] = 0.0
    """Alpha of mixup (Zhang 2018); 0 is off."""
    cutmix: Changeable[NotNegative] = 0.0
    """Alpha of CutMix (Yun 2019); 0 is off. With both, each batch gets one of them, by a fair coin."""
    survival: Fraction = 1.0
    """Of the last block under stochastic depth (Huang 2016: 0.5); 1 is off."""
    checkpoint: Changeable[bool] = False
    """Keep only the blocks' inputs for the backward pass: ResNet-1202 then trains in a quarter of the memory, a third
    slower."""
    zero_last_bn: Changeable[bool] = False
    """Start every block as the identity (Goyal 2017)."""

    @model_validator(mode="after")
    def _start_from_nothing(self) -> ClassifierSettings:
        if self.zero_last_bn and self.init is not None:
            needed = "init=None: it is a start from nothing"
            raise InputError("model.zero_last_bn", found=f"init={self.init}", needed=needed)
        return self


@takes_settings
def classifier(settings: ClassifierSettings) -> Classifier:
    """A net of the registry with its normalisation and its loss.

    Raises:
        InputError: the backbone is unknown, or its weights do not fit.
    """
    classes = settings.num_classes
    net = init_backbone(settings.backbone, settings.init, num_classes=classes, new_classifier=settings.new_head)
    if settings.zero_last_bn:
        zero_init_residual(net)
    if settings.survival < 1:
        stochastic_depth(net, settings.survival)
    if settings.checkpoint:
        checkpoint_blocks(net)
    with torch.device("cpu"):  # their distributions look at their own numbers, wherever the net is built
        kinds = [v2.MixUp(alpha=settings.mixup, num_classes=classes)] if settings.mixup else []
        kinds += [v2.CutMix(alpha=settings.cutmix, num_classes=classes)] if settings.cutmix else []
    return Classifier(
        net,
        mean=settings.mean,
        std=settings.std,
        window=settings.window,
        label_smoothing=settings.label_smoothing,
        mixing=v2.RandomChoice(kinds) if kinds else None,
    )
