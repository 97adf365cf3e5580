"""A classification net from scalars. Configs name this function."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torchvision.transforms import v2

from resdet.backbones.checkpointing import checkpoint_blocks
from resdet.backbones.resnet import zero_init_residual
from resdet.backbones.stochastic_depth import stochastic_depth
from resdet.backbones.weights import init_backbone
from resdet.classification.classifier import IMAGENET_MEAN, IMAGENET_STD, Classifier
from resdet.errors import InputError


def classifier(
    *,
    backbone: str,
    num_classes: int,
    init: str | None = None,
    new_head: bool = False,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    window: int = 7,
    label_smoothing: float = 0.0,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    survival: float = 1.0,
    checkpoint: bool = False,
    zero_last_bn: bool = False,
) -> Classifier:
    """A net of the registry over normalised images.

    Args:
        backbone: a name of ``BACKBONES``.
        num_classes: K.
        init: weights to go on from: a file, ``"pretrained"`` (timm/ and torchvision/ names), or None for He's
            initialisation.
        new_head: leave the linear layer random whatever ``init`` holds, as for other classes than the file's.
        mean: of R, G, B, on the scale 0-255.
        std: likewise.
        window: side in cells of the last map that the net was trained with, for dense testing: 7 of crops of 224.
        label_smoothing: share of the target spread evenly over the classes.
        mixup: alpha of mixup (Zhang 2018); 0 is off.
        cutmix: alpha of CutMix (Yun 2019); 0 is off. With both, each batch gets one of them, by a fair coin.
        survival: of the last block under stochastic depth (Huang 2016: 0.5); 1 is off.
        checkpoint: keep only the blocks' inputs for the backward pass: ResNet-1202 then trains in a quarter of the
            memory, a third slower.
        zero_last_bn: start every block as the identity (Goyal 2017).
    """
    if zero_last_bn and init is not None:
        raise InputError("model.zero_last_bn", found=f"init={init}", needed="init=None: it is a start from nothing")
    net = init_backbone(backbone, init, num_classes=num_classes, new_classifier=new_head)
    if zero_last_bn:
        zero_init_residual(net)
    if survival < 1:
        stochastic_depth(net, survival)
    if checkpoint:
        checkpoint_blocks(net)
    with torch.device("cpu"):  # their distributions look at their own numbers, wherever the net is built
        kinds = [v2.MixUp(alpha=mixup, num_classes=num_classes)] if mixup else []
        kinds += [v2.CutMix(alpha=cutmix, num_classes=num_classes)] if cutmix else []
    return Classifier(
        net,
        mean=tuple(mean),
        std=tuple(std),
        window=window,
        label_smoothing=label_smoothing,
        mixing=v2.RandomChoice(kinds) if kinds else None,
    )
