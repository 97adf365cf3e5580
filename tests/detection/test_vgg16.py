"""The baseline of appendix A: a detector on VGG-16. A narrow VGG stands for it where numbers flow."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from resdet.backbones.frozen import FrozenBatchNorm
from resdet.backbones.published import publish
from resdet.backbones.registry import BACKBONES
from resdet.backbones.vgg import VGG
from resdet.detection.build import faster_rcnn_c4, faster_rcnn_fpn, faster_rcnn_vgg16
from resdet.detection.faster_rcnn import Suppression
from resdet.detection.roi_head import ClassifierEmbedding
from resdet.detection.rpn import TopK
from resdet.errors import InputError
from resdet.inference.predictor import Predictor
from resdet.inference.settings import TestSettings
from resdet.structures import Target

IMAGE = torch.randint(0, 256, (3, 64, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
TARGET = Target(
    torch.tensor([[8.0, 8, 50, 50], [30, 20, 70, 60]]), torch.tensor([0, 3]), torch.tensor([False, False]), 0, (64, 80)
)
EMPTY = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.bool), 1, (64, 80))


def narrow(num_classes, *, batchnorm=False):
    groups = ((8, 8), (8, 8), (8, 8, 8), (8, 8, 8), (8, 8, 8))
    return VGG(groups, num_classes=num_classes, hidden=32, batchnorm=batchnorm)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(BACKBONES, "_entries", dict(BACKBONES._entries))
    BACKBONES.register("narrow", narrow, channels=(8,) * 4, strides=(2, 4, 8, 16))
    BACKBONES.register("narrow-bn", lambda n: narrow(n, batchnorm=True), channels=(8,) * 4, strides=(2, 4, 8, 16))
    torch.manual_seed(0)


def small(backbone="narrow", **settings):
    return faster_rcnn_vgg16(
        **{
            "backbone": backbone,
            "num_classes": 4,
            "shorter_side": 64,
            "longer_side": 128,
            "anchor_sizes": (16, 32, 64),
            "train_proposals": (50, 20),
            "test_proposals": (50, 10),
            "rois_per_image": 8,
            "score_threshold": 0.0,
        }
        | settings
    )


def test_the_embedding_by_hand():
    fc6, fc7 = nn.Linear(8, 3), nn.Linear(3, 3)
    embedding = ClassifierEmbedding(fc6, fc7, dropout=0.5)
    pooled = torch.rand(5, 2, 2, 2)
    expected = fc7(fc6(pooled.reshape(5, 8)).clamp(min=0)).clamp(min=0)  # channel by channel, as torchvision
    assert embedding.width == 3 and set(embedding.state_dict()) == {
        f"fc{n}.{s}" for n in (6, 7) for s in ("weight", "bias")
    }
    assert_close(embedding.eval()(pooled), expected)


def test_dropout_after_both_layers():
    # All ones: fc6 gives 1000 for each of 1000 hidden numbers. Half are dropped, the rest doubled: fc7 sums about 1000
    # numbers of mean 1 (scaled by 1e-6), and half of its outputs are dropped again.
    fc6, fc7 = nn.Linear(1000, 1000, bias=False), nn.Linear(1000, 1000, bias=False)
    nn.init.ones_(fc6.weight)
    nn.init.constant_(fc7.weight, 1e-6)
    vectors = ClassifierEmbedding(fc6, fc7, dropout=0.5).train()(torch.ones(20, 1000, 1, 1))
    kept = vectors > 0
    assert kept.float().mean().item() == pytest.approx(0.5, abs=0.02)
    values = vectors[kept].unique()
    assert len(values) > 10  # fc6's dropout differs from region to region
    assert vectors.mean().item() == pytest.approx(1.0, rel=0.02)  # doubled twice, halved twice


def test_full_size():
    with torch.device("meta"):
        net = faster_rcnn_vgg16(
            backbone="vgg16", num_classes=20, background_iou=[0.1, 0.5], anchor_sizes=(128, 256, 512)
        )
        coco = faster_rcnn_vgg16(backbone="vgg16-bn", num_classes=80)
    rpn, head = net.rpn, net.roi_head
    assert net.preprocess.shorter_side == (600,) and net.preprocess.longer_side == 1000
    assert (rpn.train_topk, rpn.test_topk) == (TopK(12000, 2000), TopK(6000, 300))
    assert rpn.anchors.strides == (16,) and rpn.anchors.per_cell == 9 and rpn.head.conv.in_channels == 512
    assert coco.rpn.anchors.per_cell == 12
    assert (head.pooling.method, head.pooling.strides, head.pooling.side) == ("pool", (16,), 7)
    assert (head.batch_size_per_image, head.background_iou, head.beta) == (128, (0.1, 0.5), 1.0)
    assert (head.embedding.fc6.in_features, head.embedding.width) == (512 * 49, 4096)
    assert head.embedding.dropout.p == 0.5 and head.class_logits.in_features == 4096
    assert net.suppression == Suppression(0.05, 0.3, 100)
    learning = {name.rpartition(".")[0] for name, p in net.backbone.named_parameters() if p.requires_grad}
    assert learning == {f"features.{i}" for i in (10, 12, 14, 17, 19, 21, 24, 26, 28)}  # "conv3_1 and up" (Ren 2015)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in coco.modules())
    assert sum(isinstance(m, FrozenBatchNorm) for m in coco.modules()) == 13


@pytest.mark.parametrize("backbone", ["narrow", "narrow-bn"])
@pytest.mark.parametrize("context", [False, True])
def test_trains_and_predicts(backbone, context):
    net = small(backbone, context=context)
    losses = net.loss([IMAGE, IMAGE], [TARGET, EMPTY])
    assert all(value.isfinite() and value > 0 for value in losses.values())
    sum(losses.values()).backward()
    assert not [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None]
    assert net.roi_head.embedding.fc6.weight.grad.abs().sum() > 0
    features = net.features(torch.zeros(1, 3, 64, 96))
    assert [tuple(f.shape) for f in features] == [(1, 8, 4, 6)]  # conv5_3 alone, stride 16
    assert net.roi_head.class_logits.in_features == (64 if context else 32)
    assert len(net.eval().predict([IMAGE])[0].boxes) > 0


def test_region_vectors_are_those_of_the_classifier(tmp_path):
    # A region that covers 7x7 cells of conv5_3 is pooled cell by cell: fc6 and fc7 see what they see of a classifier
    # whose last pooling is left out.
    source = narrow(5)
    path = publish(tmp_path / "narrow.safetensors", source.state_dict(), {"backbone": "narrow"})
    net = small(init=str(path)).eval()
    source.eval()
    images = torch.randn(1, 3, 112, 112)
    with torch.no_grad():
        features = net.features(images)
        assert_close(features[0], source.features[:-1](images))
        box = torch.tensor([[0.0, 0, 96, 96]])  # RoIPool's far corner belongs to the region: cells 0 .. 6
        vector = net.embed(features, box, torch.zeros(1, dtype=torch.long), net.context(features, box))
        hidden = F.relu(source.fc6(features[0].flatten(1)))
        assert_close(vector, F.relu(source.fc7(hidden)))
    assert vector.abs().sum() > 0


def test_context_is_the_whole_image():
    net = small(context=True).eval()
    with torch.no_grad():
        features = net.features(torch.randn(2, 3, 64, 96))
        limits = torch.tensor([[96.0, 64, 96, 64]]).expand(2, 4)
        context = net.context(features, limits)
        whole = torch.tensor([[0.0, 0, 96, 64]]).expand(2, 4)
        vectors = net.embed(features, whole, torch.arange(2), context)
    assert context.shape == (2, 32)
    assert_close(vectors, torch.cat([context, context], dim=1))


def test_appendix_b():
    net = small(context=True).eval()
    plain = Predictor([net]).predict([IMAGE])[0]
    for found, needed in zip(plain, net.predict([IMAGE])[0], strict=True):
        assert_close(found, needed)
    settings = TestSettings(refine=1, vote=0.5, scales=(48, 64, 96), flip=True)
    assert len(Predictor([net], settings).predict([IMAGE])[0].boxes) > 0
    other = faster_rcnn_c4(
        backbone="resnet18-half", num_classes=4, shorter_side=64, longer_side=128, test_proposals=(50, 10)
    )
    assert len(Predictor([net, other.eval()]).predict([IMAGE])) == 1  # an ensemble of the two


def test_refusals():
    with pytest.raises(InputError) as caught:
        faster_rcnn_vgg16(backbone="resnet18-half", num_classes=2)
    assert str(caught.value) == (
        "backbone 'resnet18-half' of faster_rcnn_vgg16\n  found:  a ResNet\n"
        "  needed: vgg16 or vgg16-bn; faster_rcnn_c4 and faster_rcnn_fpn take residual nets"
    )
    levels = ", or a net of timm with maps at strides 4, 8, 16 and 32"
    for build, more in ((faster_rcnn_c4, ""), (faster_rcnn_fpn, levels)):
        with pytest.raises(InputError) as caught, torch.device("meta"):
            build(backbone="vgg16", num_classes=2)
        assert str(caught.value) == (
            f"backbone 'vgg16' of {build.__name__}\n  found:  a VGG\n"
            f"  needed: a residual net, such as resnet101{more}; faster_rcnn_vgg16 takes vgg16 and vgg16-bn"
        )
    with pytest.raises(InputError, match=r"0..5 for this trunk"):
        small(frozen_stages=6)
