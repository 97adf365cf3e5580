"""Residual nets as classifiers and as feature extractors of detectors."""

from resdet.backbones.fpn import FPN
from resdet.backbones.frozen import FrozenBatchNorm, freeze_batchnorm
from resdet.backbones.registry import BACKBONES
from resdet.backbones.resnet import ResNet
from resdet.backbones.trunk import Trunk, conv5_head, freeze_stages
from resdet.backbones.weights import init_backbone

__all__ = [
    "BACKBONES",
    "FPN",
    "FrozenBatchNorm",
    "ResNet",
    "Trunk",
    "conv5_head",
    "freeze_batchnorm",
    "freeze_stages",
    "init_backbone",
]
