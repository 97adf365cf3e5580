from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from resdet.backbones.frozen import FrozenBatchNorm
from resdet.backbones.published import publish
from resdet.classification.build import classifier
from resdet.errors import InputError
from resdet.localization.build import per_class_rpn_localizer, region_localizer


def test_shapes_of_the_paper():
    net = per_class_rpn_localizer(backbone="resnet18", num_classes=30)
    # 3 sizes x 3 ratios on 512 channels
    assert net.rpn.objectness.weight.shape == (30 * 9, 512, 1, 1)
    assert net.rpn.deltas.weight.shape == (30 * 36, 512, 1, 1)
    assert (net.crop, net.num_classes, net.rpn.batch_size_per_image, net.rpn.anchors.strides) == (224, 30, 8, (32,))
    second = region_localizer(backbone="resnet18", num_classes=30)
    assert second.scores.weight.shape == (30, 512) and second.deltas.weight.shape == (120, 512)
    assert (second.side, second.num_classes) == (224, 30)
    assert net.preprocess.antialias


@pytest.mark.parametrize("build", [per_class_rpn_localizer, region_localizer])
def test_fine_tuned_from_a_published_classifier(build, tmp_path):
    torch.manual_seed(0)
    source = classifier(backbone="resnet18-half", num_classes=7).net
    publish(tmp_path / "net.safetensors", source.state_dict(), {"backbone": "resnet18-half"})
    net = build(backbone="resnet18-half", num_classes=7, init=str(tmp_path / "net.safetensors"))
    inner = net.backbone if build is per_class_rpn_localizer else net.net
    assert_close(inner.layer4[1].conv2.weight, source.layer4[1].conv2.weight)
    assert not any(key.startswith("net.fc") for key in net.state_dict())


@pytest.mark.parametrize("build", [per_class_rpn_localizer, region_localizer])
def test_frozen_batchnorm(build):
    for frozen in (True, False):
        net = build(backbone="resnet18-half", num_classes=2, frozen_batchnorm=frozen)
        assert any(isinstance(module, FrozenBatchNorm) for module in net.modules()) is frozen


def test_frozen_stages():
    net = per_class_rpn_localizer(backbone="resnet18-half", num_classes=2, frozen_stages=2)
    learning = {name.split(".")[1] for name, p in net.named_parameters() if p.requires_grad}
    assert learning == {"layer2", "layer3", "layer4", "objectness", "deltas"}


def test_settings_reach_the_net():
    net = per_class_rpn_localizer(
        backbone="resnet18-half", num_classes=2, crop=64, anchor_sizes=(20, 40), anchor_ratios=(1.0,),
        anchors_per_image=6, positive_iou=0.6, background_iou=(0.1, 0.4),
    )  # fmt: skip
    assert (net.crop, net.rpn.batch_size_per_image, net.rpn.positive_iou, net.rpn.background_iou) == (
        64,
        6,
        0.6,
        (0.1, 0.4),
    )
    assert_close(net.rpn.anchors.cells[0], torch.tensor([[-10.0, -10, 10, 10], [-20, -20, 20, 20]]))


@pytest.mark.parametrize("build", [per_class_rpn_localizer, region_localizer])
def test_other_nets_are_refused(build):
    with pytest.raises(InputError, match="backbone 'vgg16'"):
        build(backbone="vgg16", num_classes=2)
