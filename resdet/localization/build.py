"""Localizers from scalars. Configs name these functions.

Differs from the paper: it tells neither the sizes of the anchors, chosen for crops of 224 here, nor what becomes of BN
in fine-tuning, which is a constant here as in the paper's detectors.
"""

from __future__ import annotations

from collections.abc import Sequence

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

LONGEST = 16
"""Bound of an image's longer side in crops. It is no setting: it only keeps strips from filling the memory."""


def per_class_rpn_localizer(
    *,
    backbone: str,
    num_classes: int,
    init: str | None = None,
    crop: int = 224,
    frozen_stages: int = 0,
    frozen_batchnorm: bool = True,
    anchor_sizes: Sequence[float] = (64, 128, 256),
    anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    anchors_per_image: int = 8,
    positive_iou: float = 0.7,
    background_iou: tuple[float, float] = (0.0, 0.3),
) -> PerClassLocalizer:
    """The first stage: a per-class RPN on conv5_x.

    Args:
        backbone: a name of ``BACKBONES``, residual.
        num_classes: K.
        init: weights of the classification net that it is fine-tuned from: a file, ``"pretrained"`` (timm/ and
            torchvision/ names) or None.
        crop: side of the training crops in pixels; the test's centre crop is as large.
        frozen_stages: 1 freezes the stem, 2 also conv2_x, ...; the paper does not say that it freezes any.
        frozen_batchnorm: BN as a constant affine map, as in detection; without pre-trained weights it has to learn.
        anchor_sizes: sides in pixels of the net's input. The paper names none. Ren's are twice as large, but a crop of
            224 has no object for which an anchor of 512 is the best, so its weights would see background alone.
        anchor_ratios: height over width; Ren's.
        anchors_per_image: in the loss, half of them positive at most.
        positive_iou: an anchor of at least this IoU is positive, as is the best one of each object.
        background_iou: an anchor with an IoU in [low, high) is background.
    """
    trunk = freeze_stages(Trunk(_net(backbone, init, frozen_batchnorm), last=5), frozen_stages)
    anchors = Anchors([tuple(anchor_sizes)], [trunk.strides[-1]], tuple(anchor_ratios))
    rpn = PerClassRPN(
        trunk.channels[-1],
        num_classes,
        anchors,
        count=anchors_per_image,
        positive_iou=positive_iou,
        background_iou=tuple(background_iou),
    )
    return PerClassLocalizer(_preprocess(crop), trunk, rpn)


def region_localizer(
    *,
    backbone: str,
    num_classes: int,
    init: str | None = None,
    side: int = 224,
    frozen_batchnorm: bool = True,
) -> RegionLocalizer:
    """The second stage: an R-CNN on warped regions.

    Args:
        backbone: a name of ``BACKBONES``, residual.
        num_classes: K.
        init: weights of the classification net that it is fine-tuned from, as of the first stage.
        side: of the warped regions in pixels.
        frozen_batchnorm: BN as a constant affine map; without pre-trained weights it has to learn.
    """
    net = _net(backbone, init, frozen_batchnorm)
    return RegionLocalizer(_preprocess(side), net, BACKBONES[backbone].channels[-1], num_classes=num_classes)


def _net(backbone: str, init: str | None, frozen_batchnorm: bool) -> nn.Module:
    """A residual net without its linear layer: (N, 3, H, W) to the (N, D) mean of its last map."""
    net = init_backbone(backbone, init)
    check_residual(net, where=f"backbone {backbone!r} of a localizer")
    return freeze_batchnorm(net) if frozen_batchnorm else net


def _preprocess(side: int) -> Preprocess:
    # Classification crops are made with antialiasing, and so is what these nets see.
    return Preprocess(side, LONGEST * side, antialias=True)
