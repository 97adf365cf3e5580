"""Localizers from their settings. Configs name these functions.

Differs from the paper: it tells neither the sizes of the anchors, chosen for crops of 224 here, nor what becomes of BN
in fine-tuning, which is a constant here as in the paper's detectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, cast

from torch import nn

from resdet.backbones.frozen import freeze_batchnorm
from resdet.backbones.registry import BACKBONES
from resdet.backbones.trunk import Trunk, check_residual, freeze_stages
from resdet.backbones.weights import init_backbone
from resdet.detection.anchors import Anchors
from resdet.detection.preprocess import Preprocess
from resdet.localization.localizer import PerClassLocalizer
from resdet.localization.per_class_rpn import PerClassRPN
from resdet.localization.region_localizer import RegionLocalizer
from resdet.settings import Changeable, Classes, Count, CountOrNone, Fraction, Positive, Settings, Side, takes_settings

LONGEST = 16
"""Bound of an image's longer side in crops. It is no setting: it only keeps strips from filling the memory."""


class LocalizerSettings(Settings):
    """What both stages have."""

    section: ClassVar[str] = "model"
    backbone: str
    """A name of ``BACKBONES``, residual."""
    num_classes: Changeable[Classes | None] = None
    """K; None follows the data."""
    init: Changeable[str | None] = None
    """Weights of the classification net that it is fine-tuned from: a file, ``"pretrained"`` (timm/ and torchvision/
    names) or None."""
    frozen_batchnorm: Changeable[bool] = True
    """BN as a constant affine map, as in detection; without pre-trained weights it has to learn."""


class FirstStageSettings(LocalizerSettings):
    """A per-class RPN on conv5_x."""

    crop: Side = 224
    """Side of the training crops in pixels; the test's centre crop is as large."""
    frozen_stages: Changeable[CountOrNone] = 0
    """1 freezes the stem, 2 also conv2_x, ...; the paper does not say that it freezes any."""
    anchor_sizes: Sequence[Positive] = (64, 128, 256)
    """Sides in pixels of the net's input. The paper names none. Ren's are twice as large, but a crop of 224 has no
    object for which an anchor of 512 is the best, so its weights would see background alone."""
    anchor_ratios: Sequence[Positive] = (0.5, 1.0, 2.0)
    """Height over width; Ren's."""
    anchors_per_image: Changeable[Count] = 8
    """In the loss, half of them positive at most."""
    positive_iou: Changeable[Fraction] = 0.7
    """An anchor of at least this IoU is positive, as is the best one of each object."""
    background_iou: Changeable[tuple[Fraction, Fraction]] = (0.0, 0.3)
    """An anchor with an IoU in [low, high) is background."""


class SecondStageSettings(LocalizerSettings):
    """An R-CNN on warped regions."""

    side: Side = 224
    """Of the warped regions in pixels."""


@takes_settings
def per_class_rpn_localizer(settings: FirstStageSettings) -> PerClassLocalizer:
    """The first stage."""
    trunk = freeze_stages(Trunk(_net(settings)), settings.frozen_stages)
    anchors = Anchors([tuple(settings.anchor_sizes)], [trunk.strides[-1]], tuple(settings.anchor_ratios))
    rpn = PerClassRPN(
        trunk.channels[-1],
        cast(int, settings.num_classes),  # takes_settings refuses None
        anchors,
        batch_size_per_image=settings.anchors_per_image,
        positive_iou=settings.positive_iou,
        background_iou=settings.background_iou,
    )
    return PerClassLocalizer(_preprocess(settings.crop), trunk, rpn)


@takes_settings
def region_localizer(settings: SecondStageSettings) -> RegionLocalizer:
    """The second stage."""
    width, classes = BACKBONES[settings.backbone].channels[-1], cast(int, settings.num_classes)
    return RegionLocalizer(_preprocess(settings.side), _net(settings), width, num_classes=classes)


def _net(settings: LocalizerSettings) -> nn.Module:
    """A residual net without its linear layer: (N, 3, H, W) to the (N, D) mean of its last map."""
    net = init_backbone(settings.backbone, settings.init)
    check_residual(net, where=f"backbone {settings.backbone!r} of a localizer")
    return freeze_batchnorm(net) if settings.frozen_batchnorm else net


def _preprocess(side: int) -> Preprocess:
    # Classification crops are made with antialiasing, and so is what these nets see.
    return Preprocess(side, LONGEST * side, antialias=True)
