"""A classification net from scalars. Configs name this function."""

from __future__ import annotations

from resdet.backbones.weights import init_backbone
from resdet.classification.classifier import Classifier


def classifier(
    *,
    backbone: str,
    num_classes: int,
    init: str | None = None,
    label_smoothing: float = 0.0,
) -> Classifier:
    """A net of the registry over normalised images.

    Args:
        backbone: a name of ``BACKBONES``.
        num_classes: K.
        init: weights to go on from: a file, ``"pretrained"`` (timm/ and torchvision/ names), or None for He's
            initialisation; a classifier of another number of classes is replaced by a new one.
        label_smoothing: share of the target spread evenly over the classes.
    """
    net = init_backbone(backbone, init, num_classes=num_classes, new_classifier=init is not None)
    return Classifier(net, label_smoothing=label_smoothing)
