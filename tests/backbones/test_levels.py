"""timm's nets of other shapes than ResNet's, under a pyramid."""

from __future__ import annotations

import logging

import pytest
import timm
import torch
from torch.testing import assert_close

from resdet.backbones.families import family_of
from resdet.backbones.levels import LevelsTrunk
from resdet.backbones.published import publish
from resdet.backbones.registry import BACKBONES
from resdet.backbones.trunk import freeze_stages
from resdet.backbones.weights import init_backbone
from resdet.detection.build import faster_rcnn_c4, faster_rcnn_fpn
from resdet.engine.config import load_config
from resdet.engine.evaluate import evaluate
from resdet.engine.experiment import load_experiment
from resdet.engine.train import train
from resdet.errors import InputError
from resdet.structures import Target

SMALL = ("convnext_atto", "regnety_002", "resnetv2_18", "mobilenetv3_small_050", "efficientnet_lite0", "pvt_v2_b0")
SMALL_MODEL = {"num_classes": 2, "pyramid_channels": 8, "head_width": 16, "shorter_side": 64, "longer_side": 128}


@pytest.mark.parametrize("model", SMALL)
def test_maps_are_those_of_features_only(model):
    torch.manual_seed(0)
    net = timm.create_model(model).eval()
    torch.manual_seed(0)
    own = timm.create_model(model, features_only=True, feature_cls="getter").eval()
    own.model.load_state_dict(net.state_dict(), strict=False)
    strides, channels = own.feature_info.reduction(), own.feature_info.channels()
    trunk = LevelsTrunk(net, where=model)
    images = torch.randn(1, 3, 96, 160)
    with torch.no_grad():
        maps, theirs = trunk(images), dict(zip(strides, own(images), strict=True))
    assert trunk.strides == (4, 8, 16, 32)
    assert trunk.channels == tuple(channels[strides.index(stride)] for stride in trunk.strides)
    assert_close(maps, [theirs[stride] for stride in trunk.strides])


@pytest.mark.parametrize("model", SMALL)
def test_every_parameter_of_a_detector_learns(model):
    # What no map depends on is gone: DDP would wait for its gradients.
    torch.manual_seed(0)
    net = faster_rcnn_fpn(backbone=f"timm/{model}", frozen_stages=0, frozen_batchnorm=False, **SMALL_MODEL)
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    target = Target(torch.tensor([[8.0, 8, 40, 40]]), torch.tensor([1]), torch.tensor([False]), 1, (64, 96))
    losses = net.loss([image, image], [target, target])
    sum(losses.values()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("model", ["convnext_atto", "regnety_002", "mobilenetv3_small_050"])
def test_freezing(model):
    trunk = family_of(BACKBONES.build(f"timm/{model}")).pyramid()
    assert len(trunk.groups) == 5
    everything = {name for name, _ in trunk.named_parameters()}
    in_groups = {n for n in everything if n.startswith(tuple(f"{part}." for group in trunk.groups for part in group))}
    assert in_groups == everything
    freeze_stages(trunk, 2)
    frozen = tuple(f"{part}." for group in trunk.groups[:2] for part in group)
    assert {n for n, p in trunk.named_parameters() if not p.requires_grad} == {
        n for n, _ in trunk.named_parameters() if n.startswith(frozen)
    }
    before = {n: b.clone() for n, b in trunk.named_buffers() if n.startswith(frozen)}
    trunk.train()(torch.randn(2, 3, 64, 64))[-1].sum().backward()
    assert_close({n: b for n, b in trunk.named_buffers() if n.startswith(frozen)}, before, rtol=0, atol=0)


def test_names_are_those_of_the_classifier(tmp_path):
    torch.manual_seed(1)
    source = BACKBONES.build("timm/regnety_002", num_classes=3)
    path = publish(tmp_path / "net.safetensors", source.state_dict(), {"backbone": "timm/regnety_002"})
    trunk = family_of(init_backbone("timm/regnety_002", path)).pyramid()
    state = source.state_dict()
    assert_close(
        {k.removeprefix("net."): v for k, v in trunk.state_dict().items()},
        {k: state[k] for k in state if f"net.{k}" in trunk.state_dict()},
    )
    assert not any("head" in key for key in trunk.state_dict())
    assert init_backbone("timm/regnety_002", path, num_classes=5, new_classifier=True).head.fc.out_features == 5


def test_classifier_and_detector_are_trained_saved_and_evaluated(cls_config, det_config, tmp_path):
    paths = [tmp_path / "cls.py", tmp_path / "det.py"]
    for path, source in zip(paths, (cls_config, det_config), strict=True):
        path.write_text(source.read_text().replace('backbone="resnet18-half"', 'backbone="timm/convnext_atto"'))
    short = ["schedule.length=2", "schedule.validate_every=2", "schedule.milestones=()", "optimizer.type=AdamW"]
    train(load_config(paths[0], short), work_dir=tmp_path / "cls")
    weights, path = tmp_path / "cls" / "convnext_atto.safetensors", paths[1]
    config = load_config(path, [*short, "optimizer.lr=0.0005", f"model.init={weights}"])
    figures = train(config, work_dir=tmp_path / "run")
    again = evaluate(load_experiment(load_config(path), tmp_path / "run" / "last.pth"))
    assert again == pytest.approx(figures, abs=1e-9)


def test_refusals(caplog):
    caplog.set_level(logging.ERROR)
    for model, words in (
        ("vit_tiny_patch16_224", r"backbone 'timm/vit_tiny_patch16_224'(.|\n)*stride 16\n  needed: a net with maps at"),
        ("maxvit_tiny_tf_224", r"64x96 fail: (.*)divisible by window(.|\n)*images of any size"),
    ):
        with pytest.raises(InputError, match=words):
            BACKBONES[f"timm/{model}"]
    with pytest.raises(InputError, match=r"timm/convnext_atto' of faster_rcnn_c4(.|\n)*a ConvNeXt(.|\n)*_fpn takes it"):
        faster_rcnn_c4(backbone="timm/convnext_atto", num_classes=2)
    with pytest.raises(InputError, match=r"found:  6\n  needed: 0..5 for this trunk"):
        faster_rcnn_fpn(backbone="timm/convnext_atto", frozen_stages=6, **SMALL_MODEL)


def test_checkpointing_is_timms():
    torch.manual_seed(0)
    net = faster_rcnn_fpn(backbone="timm/convnext_atto", checkpoint=True, **SMALL_MODEL)
    assert net.backbone.net.stages[0].grad_checkpointing
    with pytest.raises(InputError, match=r"model.checkpoint(.|\n)*timm has no checkpointing"):
        faster_rcnn_fpn(backbone="timm/dla46_c", checkpoint=True, **SMALL_MODEL)
