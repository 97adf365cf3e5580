"""The detectors from scalars: the paper's C4 net, its VGG-16 baseline, the pyramid that followed. Configs name them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

from torch import nn

from resdet.backbones.checkpointing import checkpoint_blocks
from resdet.backbones.fpn import FPN
from resdet.backbones.frozen import freeze_batchnorm
from resdet.backbones.registry import BACKBONES
from resdet.backbones.trunk import Trunk, conv5_head, freeze_stages, take_stride
from resdet.backbones.vgg import VGG, VGGTrunk, freeze_groups
from resdet.backbones.weights import init_backbone
from resdet.detection.anchors import Anchors
from resdet.detection.faster_rcnn import FasterRCNN, LastLevel, Suppression
from resdet.detection.pooling import RoIPooling
from resdet.detection.preprocess import Preprocess, Rounding
from resdet.detection.roi_head import ClassifierEmbedding, Conv5Embedding, ConvEmbedding, RoIHead, TwoLayerEmbedding
from resdet.detection.rpn import RPN, Cut
from resdet.errors import InputError


def faster_rcnn_c4(
    *,
    backbone: str,
    num_classes: int,
    init: str | None = None,
    frozen_stages: int = 2,
    frozen_batchnorm: bool = True,
    class_agnostic: bool = False,
    context: bool = False,
    shorter_side: int | Sequence[int] = 600,
    longer_side: int = 1000,
    antialias: bool = False,
    rounding: Rounding = "torchvision",
    multiple: int = 32,
    checkpoint: bool = False,
    anchor_sizes: Sequence[float] = (64, 128, 256, 512),
    rounded_anchors: bool = True,
    pooling: Literal["align", "pool"] = "pool",
    half_pixel: bool = True,
    align_samples: int = 2,
    rois_per_image: int = 128,
    background_iou: tuple[float, float] = (0.0, 0.5),
    train_proposals: tuple[int, int] = (12000, 2000),
    test_proposals: tuple[int, int] = (6000, 300),
    score_threshold: float = 0.05,
    nms_iou: float = 0.3,
    max_per_image: int = 100,
) -> FasterRCNN:
    """The net of the paper's appendix A: conv1 ... conv4_x shared, conv5_x on each pooled region.

    Args:
        backbone: a name of ``BACKBONES``.
        num_classes: K, without background.
        init: weights of the backbone: a file, ``"pretrained"`` (timm/ and torchvision/ names) or None.
        frozen_stages: 1 freezes the stem, 2 also conv2_x, ... (Fast R-CNN freezes up to conv2).
        frozen_batchnorm: BN as a constant affine map; without pre-trained weights it has to learn.
        class_agnostic: one box per region instead of one per class.
        context: classify each region beside its whole image (appendix B).
        shorter_side: of the input, in pixels; one of several is drawn for each training batch.
        longer_side: its bound.
        antialias: blur before shrinking, as Pillow and detectron2; torchvision and mmdetection do not.
        rounding: of the resized sides, as who does it.
        multiple: the padded batch is a multiple of this; a larger one gives fewer sizes to compile or search for.
        checkpoint: keep only the inputs of the blocks for the backward pass: a third slower, for less memory.
        anchor_sizes: sides in input pixels; VOC leaves out 64 (Ren 2015).
        rounded_anchors: to whole pixels, as in torchvision; detectron2 and mmdetection do not.
        pooling: the paper pools (``"pool"``); ``"align"`` is Mask R-CNN's.
        half_pixel: with ``"align"``, align pixels and cells by their centres, as everybody does today.
        align_samples: with ``"align"``, points per bin and axis; 0 takes as many as the bin is wide.
        rois_per_image: the detector's mini-batch (Ren 2015).
        background_iou: regions with an IoU in [low, high) are background; 0.1 below for VOC, 0 for COCO.
        train_proposals: boxes before and after the NMS of the RPN in training.
        test_proposals: likewise at test; the paper keeps 300.
        score_threshold: of detections.
        nms_iou: of detections.
        max_per_image: at most so many of them.
    """
    net = _residual_net(backbone, init, frozen_batchnorm, checkpoint=checkpoint)
    trunk = freeze_stages(Trunk(net, last=4), frozen_stages)
    channels, stride = trunk.channels[-1], trunk.strides[-1]
    conv5 = conv5_head(net)
    every = take_stride(conv5)
    return FasterRCNN(
        Preprocess(shorter_side, longer_side, antialias=antialias, rounding=rounding, multiple=multiple),
        trunk,
        LastLevel(),
        RPN(
            channels,
            Anchors([tuple(anchor_sizes)], [stride], rounded=rounded_anchors),
            train_cut=Cut(*train_proposals),
            test_cut=Cut(*test_proposals),
        ),
        RoIHead(
            RoIPooling(14, [stride], method=pooling, half_pixel=half_pixel, samples=align_samples, every=every),
            Conv5Embedding(conv5, BACKBONES[backbone].channels[-1]),
            num_classes=num_classes,
            class_agnostic=class_agnostic,
            context=context,
            count=rois_per_image,
            background_iou=tuple(background_iou),
            beta=1.0,  # Fast R-CNN, eq. 3
        ),
        suppression=Suppression(score_threshold, nms_iou, max_per_image),
    )


def faster_rcnn_fpn(
    *,
    backbone: str,
    num_classes: int,
    init: str | None = None,
    frozen_stages: int = 2,
    frozen_batchnorm: bool = True,
    class_agnostic: bool = False,
    context: bool = False,
    shorter_side: int | Sequence[int] = 800,
    longer_side: int = 1333,
    antialias: bool = False,
    rounding: Rounding = "torchvision",
    multiple: int = 32,
    checkpoint: bool = False,
    anchor_sizes: Sequence[float] = (32, 64, 128, 256, 512),
    rounded_anchors: bool = True,
    inferred_strides: bool = False,
    pyramid_channels: int = 256,
    head_width: int = 1024,
    rpn_convs: int = 1,
    head_convs: int = 0,
    batchnorm: bool = False,
    half_pixel: bool = True,
    align_samples: int = 2,
    box_beta: float = 0.0,
    rois_per_image: int = 512,
    train_proposals: tuple[int, int] = (2000, 2000),
    test_proposals: tuple[int, int] = (1000, 1000),
    score_threshold: float = 0.05,
    nms_iou: float = 0.5,
    max_per_image: int = 100,
) -> FasterRCNN:
    """Faster R-CNN on a feature pyramid (Lin 2017), with the settings that today's frameworks share.

    Args:
        backbone: a name of ``BACKBONES``.
        num_classes: K, without background.
        init: weights of the backbone: a file, ``"pretrained"`` (timm/ and torchvision/ names) or None.
        frozen_stages: 1 freezes the stem, 2 also conv2_x, ...
        frozen_batchnorm: BN of the backbone as a constant affine map; without pre-trained weights it has to learn.
        class_agnostic: one box per region instead of one per class.
        context: classify each region beside its whole image (appendix B).
        shorter_side: of the input, in pixels; one of several is drawn for each training batch.
        longer_side: its bound.
        antialias: blur before shrinking, as Pillow and detectron2; torchvision and mmdetection do not.
        rounding: of the resized sides, as who does it.
        multiple: the padded batch is a multiple of this; a larger one gives fewer sizes to compile or search for.
        checkpoint: keep only the inputs of the blocks for the backward pass: a third slower, for less memory.
        anchor_sizes: one side in input pixels for each of P2 ... P6.
        rounded_anchors: to whole pixels, as in torchvision; detectron2 and mmdetection do not.
        inferred_strides: anchors stand as far apart as in torchvision (:class:`resdet.detection.anchors.Anchors`).
        pyramid_channels: width of the pyramid.
        head_width: width of the box head's fully connected layers.
        rpn_convs: 3x3 convolutions of the RPN.
        head_convs: 3x3 convolutions of the box head, before one fully connected layer; 0: two such layers and no more.
        batchnorm: BN after the convolutions of pyramid and box head; it learns, whatever ``frozen_batchnorm`` says.
        half_pixel: align pixels and cells by their centres in RoIAlign, as all but torchvision.
        align_samples: points per bin and axis; 0 takes as many as the bin is wide, as all but torchvision.
        box_beta: of smooth L1 in both stages; 0 is plain L1, as detectron2 and mmdetection; torchvision has 1/9.
        rois_per_image: the detector's mini-batch.
        train_proposals: boxes per level before the NMS of the RPN, and per image after it, in training.
        test_proposals: likewise at test.
        score_threshold: of detections.
        nms_iou: of detections.
        max_per_image: at most so many of them.
    """
    net = _residual_net(backbone, init, frozen_batchnorm, checkpoint=checkpoint)
    trunk = freeze_stages(Trunk(net, last=5), frozen_stages)
    sizes = [(size,) for size in anchor_sizes]
    fpn = FPN(trunk.channels, pyramid_channels, strides=trunk.strides, batchnorm=batchnorm)
    embedding = partial(ConvEmbedding, convs=head_convs, batchnorm=batchnorm) if head_convs else TwoLayerEmbedding
    return FasterRCNN(
        Preprocess(shorter_side, longer_side, antialias=antialias, rounding=rounding, multiple=multiple),
        trunk,
        fpn,
        RPN(
            pyramid_channels,
            Anchors(sizes, fpn.strides, rounded=rounded_anchors, inferred_strides=inferred_strides),
            train_cut=Cut(*train_proposals),
            test_cut=Cut(*test_proposals),
            beta=box_beta,
            convs=rpn_convs,
        ),
        RoIHead(
            RoIPooling(7, fpn.strides[:-1], half_pixel=half_pixel, samples=align_samples),
            embedding(pyramid_channels, 7, width=head_width),
            num_classes=num_classes,
            class_agnostic=class_agnostic,
            context=context,
            count=rois_per_image,
            beta=box_beta,
        ),
        suppression=Suppression(score_threshold, nms_iou, max_per_image),
    )


def faster_rcnn_vgg16(
    *,
    backbone: str,
    num_classes: int,
    init: str | None = None,
    frozen_stages: int = 2,
    frozen_batchnorm: bool = True,
    class_agnostic: bool = False,
    context: bool = False,
    dropout: float = 0.5,
    shorter_side: int | Sequence[int] = 600,
    longer_side: int = 1000,
    antialias: bool = False,
    anchor_sizes: Sequence[float] = (64, 128, 256, 512),
    pooling: Literal["align", "pool"] = "pool",
    rois_per_image: int = 128,
    background_iou: tuple[float, float] = (0.0, 0.5),
    train_proposals: tuple[int, int] = (12000, 2000),
    test_proposals: tuple[int, int] = (6000, 300),
    score_threshold: float = 0.05,
    nms_iou: float = 0.3,
    max_per_image: int = 100,
) -> FasterRCNN:
    """The baseline of appendix A (Ren 2015): conv1_1 ... conv5_3 of VGG-16 shared, fc6 and fc7 on each pooled region.

    Args:
        backbone: ``vgg16`` or ``vgg16-bn``.
        num_classes: K, without background.
        init: weights of the backbone, fc6 and fc7 among them: a file, published or of torchvision or timm, or None.
        frozen_stages: 1 freezes conv1, 2 also conv2 (Ren 2015 trains "conv3_1 and up"), ...
        frozen_batchnorm: of ``vgg16-bn``.
        class_agnostic: one box per region instead of one per class.
        context: classify each region beside its whole image (appendix B).
        dropout: share dropped after fc6 and after fc7 in training.
        shorter_side: of the input, in pixels.
        longer_side: its bound.
        antialias: blur before shrinking.
        anchor_sizes: sides in input pixels; VOC leaves out 64 (Ren 2015).
        pooling: of the regions, to the 7x7 cells that fc6 wants.
        rois_per_image: the detector's mini-batch (Ren 2015).
        background_iou: regions with an IoU in [low, high) are background; 0.1 below for VOC, 0 for COCO.
        train_proposals: boxes before and after the NMS of the RPN in training.
        test_proposals: likewise at test.
        score_threshold: of detections.
        nms_iou: of detections.
        max_per_image: at most so many of them.

    Raises:
        InputError: the backbone is no VGG.
    """
    net = _net(backbone, init, frozen_batchnorm)
    if not isinstance(net, VGG):
        found, needed = f"a {type(net).__name__}", "vgg16 or vgg16-bn; faster_rcnn_c4 and _fpn take residual nets"
        raise InputError(f"backbone {backbone!r} of faster_rcnn_vgg16", found=found, needed=needed)
    trunk = freeze_groups(VGGTrunk(net), frozen_stages)
    channels, stride = trunk.channels[-1], trunk.strides[-1]
    return FasterRCNN(
        Preprocess(shorter_side, longer_side, antialias=antialias),
        trunk,
        LastLevel(),
        RPN(
            channels,
            Anchors([tuple(anchor_sizes)], [stride]),
            train_cut=Cut(*train_proposals),
            test_cut=Cut(*test_proposals),
        ),
        RoIHead(
            RoIPooling(net.side, [stride], method=pooling, half_pixel=True),
            ClassifierEmbedding(net.fc6, net.fc7, dropout=dropout),
            num_classes=num_classes,
            class_agnostic=class_agnostic,
            context=context,
            count=rois_per_image,
            background_iou=tuple(background_iou),
            beta=1.0,  # Fast R-CNN, eq. 3
        ),
        suppression=Suppression(score_threshold, nms_iou, max_per_image),
    )


def _residual_net(backbone: str, init: str | None, frozen_batchnorm: bool, *, checkpoint: bool) -> nn.Module:
    net = _net(backbone, init, frozen_batchnorm)
    if isinstance(net, VGG):
        needed = "a residual net, such as resnet101; faster_rcnn_vgg16 takes vgg16 and vgg16-bn"
        raise InputError(f"backbone {backbone!r}", found="a VGG", needed=needed)
    return checkpoint_blocks(net) if checkpoint else net


def _net(backbone: str, init: str | None, frozen_batchnorm: bool) -> nn.Module:
    net = init_backbone(backbone, init)
    return freeze_batchnorm(net) if frozen_batchnorm else net
