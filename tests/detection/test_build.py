from __future__ import annotations

import pytest
import torch

from resdet.backbones.frozen import FrozenBatchNorm
from resdet.detection.build import faster_rcnn_c4, faster_rcnn_fpn
from resdet.detection.faster_rcnn import Suppression
from resdet.detection.rpn import TopK
from resdet.errors import InputError
from resdet.structures import Target

IMAGE = torch.randint(0, 256, (3, 64, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
TARGET = Target(
    torch.tensor([[8.0, 8, 50, 50], [30, 20, 70, 60]]), torch.tensor([0, 3]), torch.tensor([False, False]), 0, (64, 80)
)
SMALL = {"num_classes": 4, "shorter_side": 64, "longer_side": 128, "train_proposals": (50, 20)}


@pytest.mark.parametrize(("class_agnostic", "columns"), [(False, 4), (True, 1)])
def test_c4_trains_and_predicts(class_agnostic, columns):
    torch.manual_seed(0)
    net = faster_rcnn_c4(
        backbone="resnet18",
        class_agnostic=class_agnostic,
        anchor_sizes=(16, 32, 64),
        test_proposals=(50, 10),
        rois_per_image=8,
        score_threshold=0.0,
        **SMALL,
    )
    losses = net.loss([IMAGE], [TARGET])
    assert all(value.isfinite() and value > 0 for value in losses.values())
    sum(losses.values()).backward()
    learning = {
        name.split(".")[1 if name.startswith("backbone") else 0]
        for name, p in net.named_parameters()
        if p.grad is not None
    }
    assert learning == {"layer2", "layer3", "rpn", "roi_head"}  # the stem and conv2_x are frozen
    assert not [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None]
    features = net.features(torch.zeros(1, 3, 64, 96))
    assert [tuple(f.shape) for f in features] == [(1, 256, 4, 6)]  # C4 alone, stride 16
    assert net.roi_head.box_deltas.out_features == 4 * columns
    (scored,), _ = net.eval().score([IMAGE])
    assert scored.boxes.shape[1:] == (columns, 4) and len(scored.boxes) <= 10
    assert len(net.predict([IMAGE])[0].boxes) > 0


def test_c4_of_a_library_net():
    net = faster_rcnn_c4(backbone="torchvision/resnet18", **SMALL)
    assert net.roi_head.embedding.width == 512


def test_c4_settings_arrive():
    net = faster_rcnn_c4(backbone="resnet18", num_classes=20, background_iou=[0.1, 0.5], pooling="align")
    rpn, head = net.rpn, net.roi_head
    assert net.preprocess.shorter_side == (600,) and net.preprocess.longer_side == 1000  # appendix A
    assert (rpn.train_topk, rpn.test_topk) == (TopK(12000, 2000), TopK(6000, 300))
    assert rpn.anchors.strides == (16,) and rpn.anchors.per_cell == 12
    assert (head.pooling.method, head.pooling.strides, head.pooling.side) == ("align", (16,), 14)
    assert (head.batch_size_per_image, head.background_iou, head.beta) == (128, (0.1, 0.5), 1.0)
    assert net.suppression == Suppression(0.05, 0.3, 100)
    assert faster_rcnn_c4(backbone="resnet18", num_classes=20).roi_head.pooling.method == "pool"


def test_fpn_settings_arrive():
    net = faster_rcnn_fpn(backbone="resnet18-half", num_classes=7, box_beta=0.5, nms_iou=0.4, pyramid_channels=8)
    rpn, head = net.rpn, net.roi_head
    assert net.preprocess.shorter_side == (800,) and net.preprocess.longer_side == 1333
    assert (rpn.train_topk, rpn.test_topk) == (TopK(2000, 2000), TopK(1000, 1000))
    assert rpn.anchors.strides == (4, 8, 16, 32, 64) and rpn.anchors.per_cell == 3
    assert (head.pooling.method, head.pooling.strides, head.pooling.side) == ("align", (4, 8, 16, 32), 7)
    assert head.pooling.half_pixel and head.num_classes == net.num_classes == 7
    assert rpn.beta == head.beta == 0.5 and head.batch_size_per_image == 512
    assert net.suppression == Suppression(0.05, 0.4, 100)
    assert head.class_logits.out_features == 8 and head.embedding.fc6.in_features == 8 * 7 * 7


@pytest.mark.parametrize(
    ("build", "small"),
    [
        (faster_rcnn_c4, {"backbone": "resnet18-half", "pooling": "align"}),
        (faster_rcnn_fpn, {"backbone": "resnet18-half", "pyramid_channels": 8, "head_width": 8}),
    ],
)
def test_conventions_arrive(build, small):
    usual = build(num_classes=2, **small)
    pooling = usual.roi_head.pooling
    assert not usual.preprocess.antialias and not usual.roi_head.has_context
    assert all((cell == cell.round()).all() for cell in usual.rpn.anchors.cells)
    assert (pooling.half_pixel, pooling.samples) == (True, 2)
    other = build(
        num_classes=2,
        context=True,
        antialias=True,
        rounded_anchors=False,
        half_pixel=False,
        align_samples=0,
        **small,
    )
    pooling = other.roi_head.pooling
    assert other.preprocess.antialias and other.roi_head.has_context
    assert not any((cell == cell.round()).all() for cell in other.rpn.anchors.cells)
    assert (pooling.half_pixel, pooling.samples) == (False, 0)
    assert other.roi_head.class_logits.in_features == 2 * usual.roi_head.class_logits.in_features


def test_frozen_parts():
    small = {"backbone": "resnet18-half", "num_classes": 2, "pyramid_channels": 8}
    frozen = faster_rcnn_fpn(**small)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in frozen.modules())
    assert not any(p.requires_grad for p in frozen.backbone.layer1.parameters())
    assert all(p.requires_grad for p in frozen.backbone.layer2.parameters())
    learning = faster_rcnn_fpn(**small, frozen_stages=0, frozen_batchnorm=False)
    assert all(p.requires_grad for p in learning.parameters())
    assert not any(isinstance(m, FrozenBatchNorm) for m in learning.modules())


def test_one_anchor_size_for_each_level():
    with pytest.raises(InputError) as caught:
        faster_rcnn_fpn(backbone="resnet18-half", num_classes=2, anchor_sizes=(32, 64))
    assert "found:  2 groups: [(32.0,), (64.0,)]" in str(caught.value)
    assert "needed: one group for each of the 5 feature levels" in str(caught.value)


def test_unknown_backbone():
    with pytest.raises(InputError, match="resnet50"):
        faster_rcnn_c4(backbone="resnet5O", num_classes=2)


@pytest.mark.parametrize(("backbone", "side"), [("resnet50-1x1", 7), ("resnet50", 14)])
def test_c4_pools_only_what_conv5_reads(backbone, side):
    net = faster_rcnn_c4(backbone=backbone, num_classes=2).eval()
    pooled = net.roi_head.pooling([torch.rand(1, 1024, 20, 20)], torch.tensor([[0.0, 0, 99, 99]]), torch.tensor([0]))
    assert pooled.shape[-1] == side
    assert net.roi_head.embedding.conv5(pooled).shape == (1, 2048, 7, 7)


@pytest.mark.parametrize("build", [faster_rcnn_c4, faster_rcnn_fpn])
def test_checkpointing_changes_memory_alone(build):
    gradients = []
    for checkpoint in (False, True):
        torch.manual_seed(0)
        net = build(backbone="resnet18-half", checkpoint=checkpoint, multiple=128, **SMALL)
        torch.manual_seed(1)
        losses = net.loss([IMAGE], [TARGET])
        sum(losses.values()).backward()
        gradients.append({name: p.grad for name, p in net.named_parameters() if p.grad is not None})
    torch.testing.assert_close(gradients[1], gradients[0])
    assert net.preprocess([IMAGE]).pixels.shape[2] % 128 == 0
