"""The nets of timm and torchvision by name, imported when one is asked for."""

from __future__ import annotations

import torchvision.models
from torch import nn

from resdet.backbones.levels import size_options


def _build_timm(model: str, num_classes: int) -> nn.Module:
    import timm  # seconds of import, wanted by few commands

    net = timm.create_model(model, num_classes=num_classes)
    if options := size_options(type(net)):
        return timm.create_model(model, num_classes=num_classes, **options)
    return net


def _build_torchvision(model: str, num_classes: int) -> nn.Module:
    return torchvision.models.get_model(model, num_classes=num_classes)


def _timm_models() -> list[str]:
    import timm

    return timm.list_models()


def _torchvision_models() -> list[str]:
    return torchvision.models.list_models(module=torchvision.models)


LIBRARIES = {
    "timm": (_build_timm, _timm_models, "resnet50, resnet50d, resnext50_32x4d, seresnet50, wide_resnet50_2"),
    "torchvision": (_build_torchvision, _torchvision_models, "resnet50, resnext50_32x4d, wide_resnet50_2"),
}
"""Name to what builds a net of a number of classes, what lists the known ones, and examples."""
