"""The detectors from their settings: the paper's C4 net, its VGG-16 baseline, the pyramid that followed.

Configs name these functions; their settings are in :mod:`resdet.detection.settings`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from resdet.backbones.families import Family, family_of
from resdet.backbones.fpn import FPN
from resdet.backbones.frozen import freeze_batchnorm
from resdet.backbones.registry import BACKBONES
from resdet.backbones.trunk import FeatureExtractor, freeze_stages, take_stride
from resdet.backbones.weights import init_backbone
from resdet.detection.anchors import Anchors
from resdet.detection.faster_rcnn import FasterRCNN, LastLevel, Suppression
from resdet.detection.losses import SMOOTH_L1_BETA
from resdet.detection.pooling import RoIPooling
from resdet.detection.preprocess import Preprocess
from resdet.detection.roi_head import (
    ClassifierEmbedding,
    Conv5Embedding,
    ConvEmbedding,
    Embedding,
    RoIHead,
    TwoLayerEmbedding,
)
from resdet.detection.rpn import RPN, TopK
from resdet.detection.settings import (
    BackboneSettings,
    C4Settings,
    DetectorSettings,
    InputSettings,
    NMSSettings,
    PyramidSettings,
    RoIHeadSettings,
    RPNSettings,
    SingleLevelSettings,
    VGGSettings,
)
from resdet.errors import InputError
from resdet.settings import takes_settings


@takes_settings
def faster_rcnn_c4(settings: C4Settings) -> FasterRCNN:
    """The net of the paper's appendix A: conv1 ... conv4_x shared, conv5_x on each pooled region.

    Raises:
        InputError: the backbone is unknown or of a family without conv5_x; its weights do not fit.
    """
    trunk, conv5 = _family(settings, "faster_rcnn_c4").conv4(checkpoint=settings.checkpoint)
    freeze_stages(trunk, settings.frozen_stages)
    pooling = _pooling(14, trunk.strides[-1:], settings, every=take_stride(conv5))
    embedding = Conv5Embedding(conv5, BACKBONES[settings.backbone].channels[-1])
    return _single_level(settings, trunk, pooling, embedding)


@takes_settings
def faster_rcnn_vgg16(settings: VGGSettings) -> FasterRCNN:
    """The baseline of appendix A (Ren 2015): conv1_1 ... conv5_3 of VGG-16 shared, fc6 and fc7 on each pooled region.

    Raises:
        InputError: the backbone is no VGG; its weights, of fc6 and fc7 too, do not fit.
    """
    trunk, net = _family(settings, "faster_rcnn_vgg16").fully_connected()
    freeze_stages(trunk, settings.frozen_stages)
    pooling = _pooling(net.side, trunk.strides[-1:], settings)
    embedding = ClassifierEmbedding(net.fc6, net.fc7, dropout=settings.dropout)
    return _single_level(settings, trunk, pooling, embedding)


@takes_settings
def faster_rcnn_fpn(settings: PyramidSettings) -> FasterRCNN:
    """Faster R-CNN on a feature pyramid (Lin 2017).

    Raises:
        InputError: the backbone is unknown or without maps at strides 4 to 32; its weights do not fit.
    """
    trunk = _family(settings, "faster_rcnn_fpn").pyramid(checkpoint=settings.checkpoint)
    freeze_stages(trunk, settings.frozen_stages)
    channels = settings.pyramid_channels
    fpn = FPN(trunk.channels, channels, strides=trunk.strides, batchnorm=settings.batchnorm)
    anchors = Anchors(
        [(size,) for size in settings.anchor_sizes],
        fpn.strides,
        rounded=settings.rounded_anchors,
        inferred_strides=settings.inferred_strides,
    )
    rpn = _rpn(channels, anchors, settings, beta=settings.box_beta, convs=settings.rpn_convs)
    width, convs = settings.head_width, settings.head_convs
    embedding: Embedding
    if convs:
        embedding = ConvEmbedding(channels, 7, width=width, convs=convs, batchnorm=settings.batchnorm)
    else:
        embedding = TwoLayerEmbedding(channels, 7, width=width)
    return FasterRCNN(
        _preprocess(settings),
        trunk,
        fpn,
        rpn,
        _roi_head(_pooling(7, fpn.strides[:-1], settings), embedding, settings),
        suppression=_suppression(settings),
    )


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


def _single_level(
    settings: SingleLevelSettings, trunk: FeatureExtractor, pooling: RoIPooling, embedding: Embedding
) -> FasterRCNN:
    """A detector on the trunk's last map."""
    anchors = Anchors([tuple(settings.anchor_sizes)], trunk.strides[-1:], rounded=settings.rounded_anchors)
    return FasterRCNN(
        _preprocess(settings),
        trunk,
        LastLevel(),
        _rpn(trunk.channels[-1], anchors, settings),
        _roi_head(pooling, embedding, settings),
        suppression=_suppression(settings),
    )


def _family(settings: BackboneSettings, builder: str) -> Family:
    net = init_backbone(settings.backbone, settings.init)
    net = freeze_batchnorm(net) if settings.frozen_batchnorm else net
    return family_of(net, f"backbone {settings.backbone!r} of {builder}")


def _preprocess(settings: InputSettings) -> Preprocess:
    return Preprocess(
        settings.shorter_side,
        settings.longer_side,
        antialias=settings.antialias,
        rounding=settings.rounding,
        multiple=settings.multiple,
    )


def _rpn(
    channels: int, anchors: Anchors, settings: RPNSettings, *, beta: float = SMOOTH_L1_BETA, convs: int = 1
) -> RPN:
    train_topk, test_topk = TopK(*settings.train_proposals), TopK(*settings.test_proposals)
    return RPN(channels, anchors, beta=beta, convs=convs, train_topk=train_topk, test_topk=test_topk)


def _pooling(side: int, strides: Sequence[int], settings: RoIHeadSettings, *, every: int = 1) -> RoIPooling:
    return RoIPooling(
        side,
        strides,
        every=every,
        method=settings.pooling,
        half_pixel=settings.half_pixel,
        samples=settings.align_samples,
    )


def _roi_head(pooling: RoIPooling, embedding: Embedding, settings: DetectorSettings) -> RoIHead:
    return RoIHead(
        pooling,
        embedding,
        num_classes=cast(int, settings.num_classes),  # takes_settings refuses None
        class_agnostic=settings.class_agnostic,
        context=settings.context,
        batch_size_per_image=settings.rois_per_image,
        background_iou=settings.background_iou,
        beta=settings.box_beta,
    )


def _suppression(settings: NMSSettings) -> Suppression:
    return Suppression(settings.score_threshold, settings.nms_iou, settings.max_per_image)
