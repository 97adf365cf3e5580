"""The settings of a detector, in groups: what it sees, its backbone, its RPN, its region head, its NMS.

In a config the groups lie flat in section ``model``; each part of the net is built from the group that concerns it.
Marked ``Changeable`` is what may differ between training and test: a checkpoint refuses other values of the rest.
``Tested`` is what says how a net is tested: an override of it holds for every net of an ensemble.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from resdet.detection.preprocess import Rounding
from resdet.settings import (
    Changeable,
    Classes,
    Count,
    CountOrNone,
    Fraction,
    Layers,
    NotNegative,
    Positive,
    Settings,
    Side,
    Tested,
    Width,
)


class BackboneSettings(Settings):
    """Which backbone, its weights, and what of it stays as it is."""

    section: ClassVar[str] = "model"
    backbone: str
    """A name of ``BACKBONES``, ``timm/<model>`` or ``torchvision/<model>``."""
    num_classes: Changeable[Classes | None] = None
    """K, without background; None follows the data."""
    init: Changeable[str | None] = None
    """Weights of the backbone: a file, ``"pretrained"`` (timm/ and torchvision/ names, ``resnet18-half``) or None for
    random ones."""
    fallback: Changeable[str | None] = None
    """A backbone with weights in the package, which takes the place of one whose ``"pretrained"`` weights cannot be
    fetched."""
    frozen_stages: Changeable[CountOrNone] = 2
    """1 freezes the stem, 2 also conv2_x, ... (Fast R-CNN freezes up to conv2)."""
    frozen_batchnorm: Changeable[bool] = True
    """BN of the backbone as a constant affine map; without pre-trained weights it has to learn."""


class InputSettings(Settings):
    """What the net sees of an image."""

    section: ClassVar[str] = "model"
    shorter_side: Tested[Side | Sequence[Side]] = 800
    """Of the input, in pixels; one of several is drawn for each training batch, and the last one is used at test."""
    longer_side: Tested[Side] = 1333
    """Its bound."""
    antialias: Tested[bool] = False
    """Blur before shrinking, as Pillow and detectron2; torchvision and mmdetection do not."""
    rounding: Tested[Rounding] = "torchvision"
    """Of the resized sides, as who does it (:func:`resdet.detection.preprocess.resized`)."""
    multiple: Tested[Count] = 32
    """The padded batch is a multiple of this; a larger one gives fewer sizes to compile or search for."""


class RPNSettings(Settings):
    """Anchors and proposals."""

    section: ClassVar[str] = "model"
    anchor_sizes: Sequence[Positive] = (32, 64, 128, 256, 512)
    """Sides in input pixels: one for each of P2 ... P6, or all of them for a net of one level."""
    rounded_anchors: bool = True
    """To whole pixels, as in torchvision; detectron2 and mmdetection do not."""
    train_proposals: Changeable[tuple[Count, Count]] = (2000, 2000)
    """Boxes per level before the NMS of the RPN, and per image after it, in training."""
    test_proposals: Tested[tuple[Count, Count]] = (1000, 1000)
    """Likewise at test."""


class RoIHeadSettings(Settings):
    """Pooling, sampling and classification of regions."""

    section: ClassVar[str] = "model"
    class_agnostic: bool = False
    """One box per region instead of one per class."""
    context: bool = False
    """Classify each region beside its whole image (appendix B)."""
    pooling: Literal["align", "pool"] = "align"
    """The paper pools (``"pool"``); ``"align"`` is Mask R-CNN's."""
    half_pixel: bool = True
    """With ``"align"``, pixels and cells agree at their centres: detectron2 and mmdetection, not torchvision."""
    align_samples: CountOrNone = 2
    """With ``"align"``, points per bin and axis; 0 takes as many as the bin is wide, as detectron2 and mmdetection."""
    rois_per_image: Changeable[Count] = 512
    """Regions of an image in the loss (the detector's mini-batch)."""
    background_iou: Changeable[tuple[Fraction, Fraction]] = (0.0, 0.5)
    """Regions with an IoU in [low, high) are background; Fast R-CNN has 0.1 below for VOC, 0 for COCO."""
    box_beta: Changeable[NotNegative] = 0.0
    """Of smooth L1 in the head (and the RPN of a pyramid); 0 is plain L1, as detectron2 and mmdetection; torchvision
    has 1/9."""


class NMSSettings(Settings):
    """From scores of all regions to detections."""

    section: ClassVar[str] = "model"
    score_threshold: Tested[Fraction] = 0.05
    """Least score of a detection."""
    nms_iou: Tested[Fraction] = 0.5
    """Overlap beyond which the lesser of two boxes of a class goes."""
    max_per_image: Tested[Count] = 100
    """At most so many detections of an image."""


class DetectorSettings(BackboneSettings, InputSettings, RPNSettings, RoIHeadSettings, NMSSettings):
    """Everything about a detector. The defaults of each kind of net are in its own class."""


class PyramidSettings(DetectorSettings):
    """A feature pyramid (Lin 2017), with the settings that today's frameworks share."""

    checkpoint: Changeable[bool] = False
    """Keep only the inputs of the blocks for the backward pass: a third slower, for less memory."""
    inferred_strides: bool = False
    """Anchors stand as far apart as in torchvision (:class:`resdet.detection.anchors.Anchors`)."""
    pyramid_channels: Width = 256
    """Width of the pyramid."""
    head_width: Width = 1024
    """Width of the box head's fully connected layers."""
    rpn_convs: Annotated[Layers, Field(ge=1)] = 1
    """3x3 convolutions of the RPN."""
    head_convs: Layers = 0
    """3x3 convolutions of the box head, before one fully connected layer; 0: two such layers and no more."""
    batchnorm: bool = False
    """BN after the convolutions of pyramid and box head; it learns, whatever ``frozen_batchnorm`` says."""


class SingleLevelSettings(DetectorSettings):
    """One feature map of stride 16, with the settings of the paper's appendix A."""

    shorter_side: Tested[Side | Sequence[Side]] = 600
    longer_side: Tested[Side] = 1000
    anchor_sizes: Sequence[Positive] = (64, 128, 256, 512)
    """Sides in input pixels; VOC leaves out 64 (Ren 2015)."""
    pooling: Literal["align", "pool"] = "pool"
    rois_per_image: Changeable[Count] = 128
    train_proposals: Changeable[tuple[Count, Count]] = (12000, 2000)
    test_proposals: Tested[tuple[Count, Count]] = (6000, 300)
    nms_iou: Tested[Fraction] = 0.3
    box_beta: Changeable[NotNegative] = 1.0
    """Of smooth L1 (Fast R-CNN, eq. 3); the RPN keeps Ren's 1/9."""


class C4Settings(SingleLevelSettings):
    """The net of the paper's appendix A: conv4_x, and conv5_x on each region."""

    checkpoint: Changeable[bool] = False
    """Keep only the inputs of the blocks for the backward pass: a third slower, for less memory."""


class VGGSettings(SingleLevelSettings):
    """VGG-16, the baseline of appendix A (Ren 2015)."""

    dropout: Changeable[Annotated[float, Field(ge=0, lt=1)]] = 0.5
    """Share dropped after fc6 and after fc7 in training."""
