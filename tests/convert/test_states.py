from __future__ import annotations

import math

import foreign_states
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from resdet.backbones.registry import BACKBONES
from resdet.backbones.resnet import resnet50, resnet101
from resdet.convert import renaming as convert_state
from resdet.convert.detectron2 import RATIOS, SIZES, cell_anchors, ratios_outermost
from resdet.convert.mmdetection import read_config
from resdet.convert.renaming import Foreign, backbone_name, fold_batchnorm, fold_pixels, summary
from resdet.convert.states import KNOWN, convert, from_torchvision
from resdet.detection import build
from resdet.detection.anchors import Anchors
from resdet.detection.preprocess import RGB_MEAN, RGB_STD, Preprocess
from resdet.errors import InputError
from resdet.labels import COCO_CATEGORY_IDS


def check_places(converted):
    """Every tensor of our net is in the state, with its shape, and nothing else."""
    with torch.device("meta"):
        net = getattr(build, converted.builder)(**converted.arguments)
    own, given = (
        {k: v.shape for k, v in state.items() if not k.endswith("num_batches_tracked")}
        for state in (net.state_dict(), converted.state)
    )
    assert given == own
    return net


# torchvision


def test_names_and_rows_by_hand():
    rows = torch.arange(3.0)  # background, class 0, class 1
    ours = from_torchvision(
        {
            "backbone.body.layer1.0.conv1.weight": rows,
            "backbone.fpn.inner_blocks.2.0.bias": rows,
            "backbone.fpn.layer_blocks.3.0.weight": rows,
            "rpn.head.conv.0.0.weight": rows,
            "rpn.head.cls_logits.bias": rows,
            "rpn.head.bbox_pred.weight": rows,
            "roi_heads.box_head.fc7.bias": rows,
            "roi_heads.box_predictor.cls_score.bias": rows,
            "roi_heads.box_predictor.cls_score.weight": rows[:, None].expand(3, 2),
            "roi_heads.box_predictor.bbox_pred.bias": rows.repeat_interleave(4),
        }
    )
    assert_close(
        ours,
        {
            "backbone.layer1.0.conv1.weight": rows,
            "neck.lateral.2.bias": rows,
            "neck.output.3.weight": rows,
            "rpn.head.conv.weight": rows,
            "rpn.head.objectness.bias": rows,
            "rpn.head.deltas.weight": rows,
            "roi_head.embedding.fc7.bias": rows,
            "roi_head.class_logits.bias": torch.tensor([1.0, 2, 0]),  # background last
            "roi_head.class_logits.weight": torch.tensor([[1.0, 1], [2, 2], [0, 0]]),
            "roi_head.box_deltas.bias": torch.tensor([1.0] * 4 + [2.0] * 4),  # none for the background
        },
    )


def test_names_of_older_files():
    value = torch.ones(1)
    old = from_torchvision({"backbone.fpn.inner_blocks.0.weight": value, "rpn.head.conv.bias": value})
    assert set(old) == {"neck.lateral.0.weight", "rpn.head.conv.bias"}


def test_every_key_must_find_its_place():
    box = "roi_heads.box_head"
    keys = ("rpn.head.conv.1.1.weight", "rpn.head.conv.0.0.weight", "rpn.head.conv.weight_g", "mask.weight")
    with pytest.raises(InputError) as caught:  # a second linear layer behind convolutions has no place
        from_torchvision(
            dict.fromkeys((*keys, f"{box}.0.0.weight", f"{box}.2.weight", f"{box}.4.weight"), torch.ones(1))
        )
    assert str(caught.value).splitlines() == [
        "torchvision detector",
        "  found:  4 keys of torchvision's Faster R-CNN FPN without a place in our net: rpn.head.conv.1.1.weight, "
        "rpn.head.conv.weight_g, mask.weight, roi_heads.box_head.4.weight",
        "  needed: a Faster R-CNN (C4 or FPN) or a ResNet, nothing beside it",
    ]


def test_nothing():
    assert from_torchvision({}) == {}


@pytest.fixture(scope="module")
def coco_of_torchvision():
    """Keys and shapes of torchvision's COCO net, where row r of an output holds the number r."""
    from torchvision.models.detection import fasterrcnn_resnet50_fpn

    with torch.device("meta"):
        net = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    state = {k: foreign_states.hollow(k, v.shape) for k, v in net.state_dict().items()}
    state["roi_heads.box_predictor.cls_score.bias"] = torch.arange(91.0)
    state["roi_heads.box_predictor.bbox_pred.bias"] = torch.arange(91.0).repeat_interleave(4)
    return state


def test_torchvision_coco(coco_of_torchvision):
    converted = convert(Foreign("a.pth", coco_of_torchvision))
    net = check_places(converted)
    assert (converted.kind, converted.builder) == ("torchvision Faster R-CNN FPN", "faster_rcnn_fpn")
    assert converted.arguments["backbone"] == "resnet50" and converted.arguments["num_classes"] == 80
    # Row r of theirs is category id r; background, 0, goes last.
    ids = torch.tensor(COCO_CATEGORY_IDS, dtype=torch.float32)
    assert_close(converted.state["roi_head.class_logits.bias"], torch.cat([ids, torch.zeros(1)]))
    assert_close(converted.state["roi_head.box_deltas.bias"], ids.repeat_interleave(4))
    assert any("rows of the 80 that exist" in note for note in converted.notes)
    assert not net.roi_head.pooling.half_pixel and net.roi_head.pooling.samples == 2
    assert net.roi_head.beta == net.rpn.beta == 1 / 9
    parts = {"rpn_convs": 1, "head_convs": 0, "batchnorm": False, "inferred_strides": True}
    assert (parts | {"frozen_batchnorm": False}).items() <= converted.arguments.items()
    frozen = {k: v for k, v in coco_of_torchvision.items() if not k.endswith("num_batches_tracked")}
    converted = convert(Foreign("a.pth", frozen))  # as made with torchvision's constant layers: its COCO_V1
    assert (parts | {"frozen_batchnorm": True}).items() <= converted.arguments.items()


@pytest.mark.parametrize("eps", [None, 1e-3])
def test_the_second_version_of_torchvision(eps):
    from torchvision.models.detection import fasterrcnn_resnet50_fpn_v2

    with torch.device("meta"):
        net = fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None)
    state = {k: foreign_states.hollow(k, v.shape) for k, v in net.state_dict().items()}
    state["roi_heads.box_head.3.1.bias"] = torch.arange(256.0)
    converted = convert(Foreign("a.pth", state, batchnorm_eps=eps))
    check_places(converted)
    parts = {"rpn_convs": 2, "head_convs": 4, "batchnorm": True, "frozen_batchnorm": False, "num_classes": 80}
    assert (parts | {"pyramid_channels": 256, "head_width": 1024}).items() <= converted.arguments.items()
    assert "2 convolutions in the RPN, 4 in the box head, BN in pyramid and box head, which learns in training" in (
        converted.notes
    )
    scale = ((1 + 1e-5) / (1 + (eps or 1e-5))) ** 0.5  # hollow: scale and variance are 1
    for layer in ("neck.lateral.0.1", "neck.output.3.1", "roi_head.embedding.convs.3.1", "backbone.bn1"):
        assert converted.state[f"{layer}.weight"][0].item() == pytest.approx(scale), layer
    assert_close(converted.state["roi_head.embedding.convs.3.1.bias"], torch.arange(256.0))  # BN's own stays


def test_ninety_classes_of_ones_own(coco_of_torchvision):
    converted = convert(Foreign("a.pth", coco_of_torchvision, class_count=90))
    assert converted.arguments["num_classes"] == 90
    assert_close(converted.state["roi_head.box_deltas.bias"], torch.arange(1.0, 91).repeat_interleave(4))


@pytest.mark.parametrize(
    ("digest", "said", "eps"), [("258fb6c6", None, 0.0), ("00000000", None, 1e-5), ("258fb6c6", 1e-3, 1e-3)]
)
def test_epsilon_of_torchvision(coco_of_torchvision, digest, said, eps):
    variance = torch.full((64,), 1e-4)
    state = coco_of_torchvision | {"backbone.body.bn1.running_var": variance}
    ours = convert(Foreign("a.pth", state, digest=digest, batchnorm_eps=said)).state
    x = torch.randn(1, 64, 2, 2, generator=torch.Generator().manual_seed(0))
    layer = [ours[f"backbone.bn1.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias")]
    theirs = (x - 1) / (variance + eps).sqrt().view(-1, 1, 1) + 1  # hollow: scale, shift and mean are 1
    assert_close(F.batch_norm(x, *layer, eps=1e-5), theirs, rtol=1e-4, atol=1e-3)


def test_detectors_that_are_none_of_ours_are_refused():
    from torchvision.models import detection

    for build_net in (
        detection.maskrcnn_resnet50_fpn,
        detection.fasterrcnn_mobilenet_v3_large_fpn,
        detection.retinanet_resnet50_fpn,
    ):
        with torch.device("meta"):
            net = build_net(weights=None, weights_backbone=None)
        state = {k: foreign_states.hollow(k, v.shape) for k, v in net.state_dict().items()}
        with pytest.raises(InputError, match=r"^a\.pth\n") as caught:
            convert(Foreign("a.pth", state))
        assert "without a place" in str(caught.value) or "none of our backbones" in str(caught.value)
        assert len(str(caught.value)) < 1500


# detectron2 and mmdetection: keys


@pytest.mark.parametrize("depth", [50, 101])
@pytest.mark.parametrize("pyramid", [False, True], ids=["C4", "FPN"])
def test_detectron2(depth, pyramid):
    state = foreign_states.detectron2(pyramid, depths=foreign_states.DEPTHS[depth])
    converted = convert(Foreign("model_final.pkl", state))
    net = check_places(converted)
    assert converted.kind == f"detectron2 Faster R-CNN {'FPN' if pyramid else 'C4'}"
    expected = {
        **{"backbone": f"resnet{depth}-1x1", "num_classes": 80, "class_agnostic": False, "shorter_side": 800},
        **{"longer_side": 1333, "antialias": True, "rounding": "detectron2"},
        **{"anchor_sizes": [32, 64, 128, 256, 512], "rounded_anchors": False},
        **{"half_pixel": True, "align_samples": 0, "rois_per_image": 512, "score_threshold": 0.05, "nms_iou": 0.5},
        "max_per_image": 100,
    }
    if pyramid:
        expected |= {"pyramid_channels": 256, "head_width": 1024, "box_beta": 0.0}
        expected |= {"train_proposals": (2000, 1000), "test_proposals": (1000, 1000)}
    else:
        expected |= {"pooling": "align", "train_proposals": (12000, 2000), "test_proposals": (6000, 1000)}
    assert converted.arguments == expected
    assert net.roi_head.pooling.method == "align" and net.roi_head.pooling.half_pixel
    assert all(len(converted.state[k]) == 81 for k in ("roi_head.class_logits.weight", "roi_head.class_logits.bias"))


X101 = {"depths": foreign_states.DEPTHS[101], "groups": (32, 8)}
X101_CONFIG = """
MODEL:
  PIXEL_STD: [57.375, 57.120, 58.395]
  RESNETS: {STRIDE_IN_1X1: False, NUM_GROUPS: 32, WIDTH_PER_GROUP: 8, DEPTH: 101}
"""


@pytest.mark.parametrize(("classes", "config"), [(80, None), (8, X101_CONFIG), (1203, X101_CONFIG)])
def test_detectron2_resnext(classes, config):
    """The stride is told by the groups, and ImageNet's deviation goes with it."""
    converted = convert(
        Foreign("model_final.pkl", foreign_states.detectron2(True, **X101, classes=classes), config=config)
    )
    net = check_places(converted)
    assert converted.arguments["backbone"] == "resnext101_32x8d" and net.num_classes == classes
    conv2 = net.backbone.layer2[0].conv2
    assert (conv2.groups, conv2.stride, conv2.in_channels) == (32, (2, 2), 512)
    assert_close(converted.state["backbone.conv1.weight"][0, :, 0, 0], torch.ones(3))  # over the deviation, as ours
    assert "stride on the 3x3 convolution" in converted.notes
    assert any(
        "ASSUMED" in note and "BGR" in note and "stride" not in note.split("(the")[0] for note in converted.notes
    )


def test_stride_of_a_resnext():
    for make, stride in ((foreign_states.detectron2(True, **X101), "1x1"), (foreign_states.caffe2(**X101), "1x1")):
        with pytest.raises(InputError, match=r"--stride-on 1x1, or a --style(.|\n)*tells 3x3"):
            convert(Foreign("a.pkl", make, stride_on=stride))
    with pytest.raises(
        InputError, match=r"resnext50_32x4d with its stride on the first 1x1\n  needed: --stride-on 3x3"
    ):
        backbone_name(resnext50(), stride_on="1x1", source="a.pth")
    assert backbone_name(resnext50(), stride_on="3x3", source="a.pth") == "resnext50_32x4d"


def resnext50():
    with torch.device("meta"):
        return BACKBONES.build("resnext50_32x4d").state_dict()


MMDETECTION_3 = """
test_pipeline = [
    dict(backend_args=None, type='LoadImageFromFile'),
    dict(keep_ratio=True, scale=(1000, 600), type='Resize'),
    dict(type='PackDetInputs')]
model = dict(
    backbone=dict(depth=50, norm_cfg=dict(requires_grad=False, type='BN'), style='caffe', type='ResNet'),
    data_preprocessor=dict(
        bgr_to_rgb=False, mean=[103.53, 116.28, 123.675], pad_size_divisor=32, std=[1.0, 1.0, 1.0],
        type='DetDataPreprocessor'),
    rpn_head=dict(anchor_generator=dict(ratios=[0.5, 1.0, 2.0], scales=[{scales}], strides=[{strides}],
        type='AnchorGenerator')),
    roi_head=dict(bbox_roi_extractor=dict(roi_layer=dict(output_size=7, sampling_ratio=0, type='RoIAlign'))),
    test_cfg=dict(
        rcnn=dict(max_per_img=50, nms=dict(iou_threshold=0.6, type='nms'), score_thr=0.01),
        rpn=dict(max_per_img=500, min_bbox_size=0, nms=dict(iou_threshold=0.7, type='nms'), nms_pre=900)))
"""
FPN_ANCHORS = {"scales": "8", "strides": "4, 8, 16, 32, 64"}
C4_ANCHORS = {"scales": "2, 4, 8, 16, 32", "strides": "16"}
MMDETECTION_2 = """
img_norm_cfg = dict(
    mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
data = dict(test=dict(type='CocoDataset', pipeline=[
    dict(type='LoadImageFromFile'),
    dict(type='MultiScaleFlipAug', img_scale=(1333, 640), flip=False, transforms=[
        dict(type='Normalize', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)])]))
model = dict(type='FasterRCNN', backbone=dict(type='ResNet', depth=50, style='pytorch'),
    rpn_head=dict(anchor_generator=dict(type='AnchorGenerator', scales=[4], ratios=[0.5, 1.0, 2.0],
        strides=[4, 8, 16, 32, 64])),
    test_cfg=dict(rpn=dict(nms_pre=1000, max_num=300), rcnn=dict(score_thr=0.05, nms=dict(type='nms', iou_thr=0.4))))
"""


@pytest.mark.parametrize("depth", [50, 101])
@pytest.mark.parametrize("pyramid", [False, True], ids=["C4", "FPN"])
@pytest.mark.parametrize("style", ["caffe", "pytorch"])
def test_mmdetection_told_by_the_user(depth, pyramid, style):
    state = foreign_states.mmdetection(pyramid, depths=foreign_states.DEPTHS[depth])
    converted = convert(Foreign("faster_rcnn.pth", state, style=style))
    check_places(converted)
    assert converted.kind == f"mmdetection Faster R-CNN {'FPN' if pyramid else 'C4'}"
    assert converted.arguments["backbone"] == f"resnet{depth}" + ("-1x1" if style == "caffe" else "")
    expected = {
        **{"num_classes": 80, "class_agnostic": False, "shorter_side": 800, "longer_side": 1333},
        **{"anchor_sizes": [32, 64, 128, 256, 512], "rounded_anchors": False, "half_pixel": True, "align_samples": 0},
        **{"test_proposals": (1000 if pyramid else 6000, 1000), "nms_iou": 0.5},
    }
    assert expected.items() <= converted.arguments.items() and "antialias" not in converted.arguments
    assert converted.arguments.get("pooling") == (None if pyramid else "align")
    # conv1 was all ones: over their deviation (1, or ours), times ours, with the channels turned for BGR
    row = torch.tensor(RGB_STD) if style == "caffe" else torch.ones(3)
    assert_close(converted.state["backbone.conv1.weight"][0, :, 0, 0], row)


@pytest.mark.parametrize("pyramid", [False, True], ids=["C4", "FPN"])
def test_mmdetection_told_by_its_config(pyramid):
    text = MMDETECTION_3.format(**(FPN_ANCHORS if pyramid else C4_ANCHORS))
    meta = {"cfg": text, "dataset_meta": {"CLASSES": ("a", "b"), "PALETTE": []}}
    converted = convert(Foreign("a.pth", foreign_states.mmdetection(pyramid, classes=2), meta))
    check_places(converted)
    expected = {
        **{"backbone": "resnet50-1x1", "shorter_side": 600, "longer_side": 1000, "test_proposals": (900, 500)},
        **{"score_threshold": 0.01, "nms_iou": 0.6, "max_per_image": 50, "align_samples": 0},
        "rounding": "mmdetection",
    }
    assert expected.items() <= converted.arguments.items()
    assert converted.classes == ("a", "b")
    assert_close(converted.state["backbone.conv1.weight"][0, :, 0, 0], torch.tensor(RGB_STD))


def test_mmdetection_3_leaves_pixels_as_they_are_read():
    """As OpenCV reads them, BGR, unless the config says otherwise."""
    text = MMDETECTION_3.format(**FPN_ANCHORS).replace("bgr_to_rgb=False, ", "")
    state = foreign_states.mmdetection(True)
    state["backbone.conv1.weight"] = torch.arange(3.0).view(1, 3, 1, 1).expand(64, 3, 7, 7)
    found = convert(Foreign("a.pth", state, {"cfg": text})).state["backbone.conv1.weight"][0, :, 0, 0]
    assert_close(found, torch.tensor([2.0, 1, 0]) * torch.tensor(RGB_STD))


def test_mmdetection_2_told_by_its_config():
    meta = {"config": MMDETECTION_2, "CLASSES": ["a", "b"]}
    converted = convert(Foreign("a.pth", foreign_states.mmdetection(True, classes=2), meta))
    expected = {
        **{"backbone": "resnet50", "shorter_side": 640, "longer_side": 1333, "test_proposals": (1000, 300)},
        **{"nms_iou": 0.4, "anchor_sizes": [16, 32, 64, 128, 256]},
    }
    assert expected.items() <= converted.arguments.items()
    assert converted.classes == ("a", "b")
    assert_close(converted.state["backbone.conv1.weight"][0, :, 0, 0], torch.ones(3))


@pytest.mark.parametrize("make", [foreign_states.detectron2, foreign_states.mmdetection])
@pytest.mark.parametrize(("classes", "agnostic"), [(1, False), (3, True), (8, False), (20, False), (1203, False)])
def test_class_counts(make, classes, agnostic):
    converted = convert(Foreign("a.pth", make(True, classes=classes, agnostic=agnostic), style="caffe"))
    assert converted.arguments["num_classes"] == classes and converted.arguments["class_agnostic"] == agnostic
    check_places(converted)


# conventions, in numbers


@pytest.mark.parametrize("bgr", [True, False], ids=["BGR", "RGB"])
@pytest.mark.parametrize("std", [(1.0, 1.0, 1.0), (50.0, 60.0, 70.0)])
def test_pixels(bgr, std):
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 33, 47), generator=generator, dtype=torch.uint8)  # RGB
    conv1 = torch.randn(8, 3, 7, 7, generator=generator)
    order = [2, 1, 0] if bgr else [0, 1, 2]
    mean = torch.tensor([[123.675, 116.28, 103.53][c] for c in order])
    seen = (image.float()[order] - mean.view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    padded = F.pad(seen, (0, 64 - 47, 0, 64 - 33))  # theirs, too, pads with zeros after normalising
    expected = F.conv2d(padded[None], conv1, stride=2, padding=3)
    ours = fold_pixels(conv1, mean=mean.tolist(), std=std, bgr=bgr, source="a")
    found = F.conv2d(Preprocess(33, 47)([image]).pixels, ours, stride=2, padding=3)
    assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_other_means_are_refused():
    with pytest.raises(InputError) as caught:  # Detectron's first ones
        fold_pixels(
            torch.ones(1, 3, 7, 7), mean=(102.9801, 115.9465, 122.7717), std=(1, 1, 1), bgr=True, source="a.pkl"
        )
    assert str(caught.value).startswith("a.pkl\n  found:  pixel means RGB [122.772, 115.947, 102.98]\n  needed: RGB")


def first_pixel(converted):
    """What conv1, whose weights are all one in the source, became for each of our channels."""
    return converted.state["backbone.conv1.weight"][0, :, 0, 0]


DETECTRON2 = """
_BASE_: "../Base-RCNN-FPN.yaml"
MODEL:
  PIXEL_STD: [57.375, 57.120, 58.395]
  RESNETS:
    STRIDE_IN_1X1: False  # as ResNeXt
  ANCHOR_GENERATOR:
    SIZES: "((16,), (32,), (64,), (128,), (256,))"
  RPN: {PRE_NMS_TOPK_TEST: 500, POST_NMS_TOPK_TEST: 200, POST_NMS_TOPK_TRAIN: 900}
  ROI_HEADS: {SCORE_THRESH_TEST: 0.2, NMS_THRESH_TEST: 0.4, BATCH_SIZE_PER_IMAGE: 128}
  ROI_BOX_HEAD: {POOLER_TYPE: ROIAlign, POOLER_SAMPLING_RATIO: 2}
INPUT: {MIN_SIZE_TEST: 600, MAX_SIZE_TEST: 1000}
TEST: {DETECTIONS_PER_IMAGE: 30}
"""


def test_detectron2_told_by_its_config():
    converted = convert(Foreign("a.pth", foreign_states.detectron2(True), config=DETECTRON2))
    net = check_places(converted)
    expected = {
        **{"backbone": "resnet50", "anchor_sizes": [16, 32, 64, 128, 256], "half_pixel": False, "align_samples": 2},
        **{"shorter_side": 600, "longer_side": 1000, "score_threshold": 0.2, "nms_iou": 0.4, "max_per_image": 30},
        **{"rois_per_image": 128, "train_proposals": (2000, 900), "test_proposals": (500, 200)},
    }
    assert expected.items() <= converted.arguments.items()
    assert net.preprocess.size((480, 640), 600) == (600, 800)
    # BGR, detectron2's default, over a deviation in that order: nothing is left to fold.
    assert_close(first_pixel(converted), torch.ones(3))
    assert any("_BASE_ '../Base-RCNN-FPN.yaml' is not read" in note for note in converted.notes)
    assert [note for note in converted.notes if "ASSUMED" in note] == [
        "ASSUMED, as neither file nor config tells: BGR pixels (the model zoo's); if it finds little, say --config "
        "FILE.yaml, or --channels rgb, --stride-on 3x3"
    ]


@pytest.mark.parametrize(
    ("text", "backbone", "factor"),
    [  # what conv1 takes up: nothing of pixels that are divided, the deviation of others
        ("INPUT: {FORMAT: RGB}\nMODEL: {PIXEL_MEAN: [123.675, 116.28, 103.53]}", "resnet50-1x1", RGB_STD),
        ("INPUT: {FORMAT: BGR}\nMODEL: {RESNETS: {STRIDE_IN_1X1: false}}", "resnet50", RGB_STD),
    ],
)
def test_pixels_of_detectron2s_config(text, backbone, factor):
    converted = convert(Foreign("a.pth", foreign_states.detectron2(True), config=text))
    assert converted.arguments["backbone"] == backbone
    assert_close(first_pixel(converted), torch.tensor(factor))


@pytest.mark.parametrize(
    ("said", "backbone", "factor", "assumed"),
    [
        ({}, "resnet50-1x1", RGB_STD, "BGR pixels and stride on the first 1x1 convolution"),
        ({"style": "caffe"}, "resnet50-1x1", RGB_STD, None),
        ({"style": "pytorch"}, "resnet50", (1, 1, 1), None),
        ({"stride_on": "3x3"}, "resnet50", (1, 1, 1), "BGR pixels"),  # ResNeXt's way
        ({"channels": "rgb", "stride_on": "3x3"}, "resnet50", (1, 1, 1), None),
        ({"channels": "rgb"}, "resnet50-1x1", (1, 1, 1), "stride on the first 1x1 convolution"),
        ({"style": "caffe", "stride_on": "3x3"}, "resnet50", (1, 1, 1), None),  # the finer switch wins
    ],
)
def test_detectron2_told_by_the_user_or_assumed(said, backbone, factor, assumed):
    converted = convert(Foreign("a.pth", foreign_states.detectron2(True), **said))
    assert converted.arguments["backbone"] == backbone
    assert_close(first_pixel(converted), torch.tensor(factor, dtype=torch.float32))
    notes = [note for note in converted.notes if note.startswith("ASSUMED")]
    assert [f": {assumed} (the model" in note for note in notes] == ([True] if assumed else [])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("MODEL: [", r"--config\n  found:  while parsing"),
        ("[" * 5000, r"--config\n  found:  "),
        ("model: {}", r"--config\n  found:  none of its sections"),
        ("3", r"--config\n  found:  none of its sections"),
        ("!!python/object/apply:os.getpid []", r"could not determine a constructor"),
        ("INPUT: {FORMAT: YUV}", r"INPUT.FORMAT\n  found:  'YUV'\n  needed: BGR or RGB"),
        ("INPUT: {MIN_SIZE_TEST: wide}", r"INPUT.MIN_SIZE_TEST\n  found:  'wide'\n  needed: a value like 800"),
        ("MODEL: {PIXEL_MEAN: [1, 2]}", r"MODEL.PIXEL_MEAN\n  found:  \[1, 2\]\n  needed: three numbers"),
        ("MODEL: {PIXEL_STD: [57.4, 57.1, 58.4]}", r"a pixel_std of (.|\n)*--stride-on 3x3"),
        ("MODEL: {ROI_BOX_HEAD: {POOLER_TYPE: ROIPool}}", r"POOLER_TYPE\n  found:  'ROIPool'\n  needed: ROIAlignV2 or"),
        ("MODEL: {ROI_BOX_HEAD: {POOLER_RESOLUTION: 14}}", r"POOLER_RESOLUTION = 14\n  needed: 7"),
        ("MODEL: {ROI_HEADS: {NUM_CLASSES: 20}}", r"NUM_CLASSES = 20\n  needed: 80"),
        ("MODEL: {RPN: {NMS_THRESH: 0.9}}", r"MODEL.RPN.NMS_THRESH = 0.9\n  needed: 0.7"),
        ("MODEL: {ANCHOR_GENERATOR: {SIZES: [[32, 64]]}}", r"3 in a cell, which are not \[\[32, 64\]\]"),
        ("MODEL: {ANCHOR_GENERATOR: {SIZES: [[], [], [], [], []]}}", r"3 in a cell, which are not"),
    ],
)
def test_configs_of_detectron2_that_do_not_fit(text, found):
    with pytest.raises(InputError, match=found):
        convert(Foreign("a.pkl", foreign_states.detectron2(True), config=text))


def test_the_config_of_another_file():
    state = foreign_states.detectron2(True)
    rgb = torch.tensor(RGB_MEAN)
    for own, text, found in (
        (
            {"pixel_mean": rgb},
            "MODEL: {PIXEL_MEAN: [103.53, 116.28, 123.675]}",
            r"pixel_mean\n  found:  123.675, 116.28",
        ),
        ({"pixel_mean": rgb[:2]}, "MODEL: {}", r"pixel_mean\n  found:  \[123"),
        (
            {f"proposal_generator.anchor_generator.cell_anchors.{n}": cell_anchors([s]) for n, s in enumerate(SIZES)},
            "MODEL: {ANCHOR_GENERATOR: {SIZES: [[16], [32], [64], [128], [256]]}}",
            r"anchors\n  found:  \[\[32.0\], .* in the file, \[\[16\]",
        ),
    ):
        with pytest.raises(InputError, match=found):
            convert(Foreign("a.pth", state | own, config=text))


@pytest.mark.parametrize("said", [{"style": "pytorch"}, {"channels": "rgb"}, {"stride_on": "3x3"}, {"config": "a: 1"}])
def test_what_a_kind_does_not_take_is_not_ignored(coco_of_torchvision, said):
    switch = f"--{next(iter(said)).replace('_', '-')}"
    with pytest.raises(InputError, match=rf"a\.pth\n  found:  {switch} for a file of one kind"):
        convert(Foreign("a.pth", coco_of_torchvision, **said))
    if switch == "--config":
        with pytest.raises(InputError, match=switch):
            convert(Foreign("a.pkl", foreign_states.caffe2(), **said))


def test_buffers_of_detectron2():
    """The file's own means and deviations are used; the order of the means tells the pixel format."""
    state = foreign_states.detectron2(True)
    rgb = torch.tensor(RGB_MEAN).view(3, 1, 1)
    state |= {"pixel_mean": rgb, "pixel_std": torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)}
    with pytest.raises(InputError, match=r"a pixel_std of 58.395, 57.12, 57.375(.|\n)*needed: --stride-on 3x3"):
        convert(Foreign("a.pth", state))
    converted = convert(Foreign("a.pth", state, style="pytorch"))
    assert converted.arguments["backbone"] == "resnet50"
    assert_close(converted.state["backbone.conv1.weight"][0, :, 0, 0], torch.ones(3))
    state |= {"pixel_mean": rgb.flip(0), "pixel_std": torch.ones(3, 1, 1)}
    converted = convert(Foreign("a.pth", state))
    assert converted.arguments["backbone"] == "resnet50-1x1"
    assert_close(converted.state["backbone.conv1.weight"][0, :, 0, 0], torch.tensor(RGB_STD))
    with pytest.raises(InputError, match="pixel means"):
        convert(Foreign("a.pth", state | {"pixel_mean": rgb + 3}))


def slow_detectron2_anchors(sizes):
    """detectron2's order inside a cell: sizes outermost."""
    rows = []
    for size in sizes:
        for ratio in (0.5, 1.0, 2.0):
            width = math.sqrt(size * size / ratio)
            rows.append([-width / 2, -ratio * width / 2, width / 2, ratio * width / 2])
    return rows


def test_ratios_outermost_by_hand():
    # 2 sizes x 3 ratios: theirs is s0r0 s0r1 s0r2 s1r0 s1r1 s1r2; ours s0r0 s1r0 s0r1 s1r1 s0r2 s1r2
    assert ratios_outermost(torch.arange(6.0), 2).tolist() == [0, 3, 1, 4, 2, 5]
    deltas = torch.arange(6.0).repeat_interleave(4)  # four rows of an anchor stay together
    assert ratios_outermost(deltas, 2).tolist() == [0] * 4 + [3] * 4 + [1] * 4 + [4] * 4 + [2] * 4 + [5] * 4


@pytest.mark.parametrize("sizes", [SIZES, (40.0, 90.0)])
def test_anchor_order_of_detectron2(sizes):
    """In each place of ours stand the anchor, the score and the deltas of one anchor of theirs, and in no other."""
    theirs = slow_detectron2_anchors(sizes)
    state = foreign_states.detectron2(False, per_cell=len(theirs), make=foreign_states.hollow)
    state["proposal_generator.anchor_generator.cell_anchors.0"] = torch.tensor(theirs)
    head = "proposal_generator.rpn_head."
    state[f"{head}objectness_logits.bias"] = torch.arange(float(len(theirs)))
    state[f"{head}anchor_deltas.bias"] = torch.tensor(theirs).flatten()  # each row tells the anchor it belongs to
    converted = convert(Foreign("a.pkl", state))
    assert converted.arguments["anchor_sizes"] == list(sizes)
    ours = Anchors([sizes], [16], rounded=False).cells[0]
    scores = converted.state["rpn.head.objectness.bias"]
    assert_close(torch.tensor(theirs)[scores.long()], ours)
    assert_close(converted.state["rpn.head.deltas.bias"].view(-1, 4), ours)
    assert sorted(scores.tolist()) == list(range(len(theirs)))


def test_anchor_buffers_of_a_pyramid():
    state = foreign_states.detectron2(True)
    prefix = "proposal_generator.anchor_generator.cell_anchors."
    own = {f"{prefix}{level}": cell_anchors([size]) for level, size in enumerate((20.0, 40.0, 80.0, 160.0, 320.0))}
    assert convert(Foreign("a.pkl", state | own)).arguments["anchor_sizes"] == [20, 40, 80, 160, 320]
    assert_close(cell_anchors(SIZES), torch.tensor(slow_detectron2_anchors(SIZES)))
    assert RATIOS == (0.5, 1.0, 2.0)
    for wrong in (
        own | {f"{prefix}2": cell_anchors([80.0]) + 4},  # not around the origin
        own | {f"{prefix}2": cell_anchors([80.0]).roll(1, 0)},  # other ratios, or another order
        {k: v for k, v in own.items() if not k.endswith("4")},
        own | {f"{prefix}2": cell_anchors([80.0, 81.0])},
    ):
        with pytest.raises(InputError, match=r"a.pkl: anchors\n  found:  "):
            convert(Foreign("a.pkl", state | wrong))


def test_unknown_anchors_are_refused():
    with pytest.raises(InputError, match=r"9 in a cell, which are not (.|\n)*--config, to know their sizes"):
        convert(Foreign("a.pkl", foreign_states.detectron2(False, per_cell=9)))


def test_scale_and_shift_alone():
    """A layer without statistics is its scale and shift, and the bias of a convolution before it is not lost."""
    scale, shift, bias = torch.tensor([2.0, -3.0]), torch.tensor([0.5, 1.0]), torch.tensor([10.0, 20.0])
    ours = fold_batchnorm({"layer1.0.bn2.weight": scale, "layer1.0.bn2.bias": shift, "layer1.0.conv2.bias": bias})
    layer = nn.BatchNorm2d(2).eval()
    layer.load_state_dict({k.removeprefix("layer1.0.bn2."): v for k, v in ours.items()}, strict=False)
    x = torch.tensor([[3.0, 4.0]]).view(1, 2, 1, 1)
    # 2 (3 + 10) + 0.5 = 26.5; -3 (4 + 20) + 1 = -71
    assert_close(layer(x).flatten(), torch.tensor([26.5, -71.0]))
    assert set(ours) == {f"layer1.0.bn2.{leaf}" for leaf in foreign_states.BN}


# backbones


@pytest.mark.parametrize("depth", [50, 101])
@pytest.mark.parametrize("make", [foreign_states.caffe2, foreign_states.caffe])
def test_backbone_keys(depth, make):
    state = make(depths=foreign_states.DEPTHS[depth])
    converted = convert(Foreign("R.pkl", state))
    assert converted.builder is None
    assert converted.arguments == {"backbone": f"resnet{depth}-1x1", "num_classes": 1000}
    with torch.device("meta"):
        net = {50: resnet50, 101: resnet101}[depth]()
    own = {k: v.shape for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert {k: v.shape for k, v in converted.state.items()} == own


def test_backbones_in_torchvisions_names_need_a_style():
    state = {k: v for k, v in resnet50().state_dict().items() if not k.startswith("fc.")}
    with pytest.raises(InputError, match=r"no key tells\n  needed: --channels bgr --stride-on 1x1 \(short: --style"):
        convert(Foreign("a.pth", state))
    converted = convert(Foreign("a.pth", state, style="caffe"))
    assert converted.arguments == {"backbone": "resnet50-1x1"}
    expected = state["conv1.weight"].flip(1) * torch.tensor(RGB_STD).view(3, 1, 1)
    assert_close(converted.state["conv1.weight"], expected)
    assert_close(convert(Foreign("a.pth", state, style="pytorch")).state["conv1.weight"], state["conv1.weight"])


@pytest.mark.parametrize("make", [foreign_states.caffe2, foreign_states.caffe])
def test_backbone_function(make, monkeypatch):
    """The converted net on RGB pixels is a plain evaluation of the source's layers on BGR pixels."""
    widths, depths = (4, 4, 4, 4), (2, 1, 1, 8)
    state = make(depths=depths, widths=widths, classes=5, make=foreign_states.Random())
    lettered = make is foreign_states.caffe

    def layer(x, name, *, stride=1, padding=0):
        weight = state[f"{name[0]}{name[1]}.weight"] if lettered else state[f"{name[0]}{name[1]}_w"]
        bias = None if lettered else state.get(f"{name[0]}{name[1]}_b")
        x = F.conv2d(x, weight, bias, stride=stride, padding=padding)
        if lettered:
            scale, bn = f"scale{name[1]}", f"bn{name[1]}"
            mean, variance = state[f"{bn}.running_mean"], state[f"{bn}.running_var"]
            return F.batch_norm(x, mean, variance, state[f"{scale}.weight"], state[f"{scale}.bias"], eps=1e-5)
        bn = "res_conv1_bn" if name[1] == "conv1" else f"res{name[1]}_bn"
        return x * state[f"{bn}_s"].view(-1, 1, 1) + state[f"{bn}_b"].view(-1, 1, 1)

    image = torch.randint(0, 256, (3, 64, 64), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    x = image.flip(0)[None].float() - torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1)
    if lettered:
        x = F.conv2d(x, state["conv1.weight"], stride=2, padding=3)
        statistics = state["bn_conv1.running_mean"], state["bn_conv1.running_var"]
        x = F.batch_norm(x, *statistics, state["scale_conv1.weight"], state["scale_conv1.bias"], eps=1e-5)
    else:
        x = layer(x, ("", "conv1"), stride=2, padding=3)
    x = F.max_pool2d(F.relu(x), 3, 2, 1)
    for stage, depth in enumerate(depths, start=2):
        for block in range(depth):
            stride = 2 if stage > 2 and block == 0 else 1
            mark = ("abcdef"[block] if depth <= 6 or block == 0 else f"b{block}") if lettered else f"_{block}"
            prefix = f"{stage}{mark}_branch"
            shortcut = layer(x, ("res", f"{prefix}1"), stride=stride) if block == 0 else x
            y = F.relu(layer(x, ("res", f"{prefix}2a"), stride=stride))  # on the first 1x1
            y = F.relu(layer(y, ("res", f"{prefix}2b"), padding=1))
            x = F.relu(layer(y, ("res", f"{prefix}2c")) + shortcut)
    head = ("fc1000.weight", "fc1000.bias") if lettered else ("fc1000_w", "fc1000_b")
    expected = F.linear(x.mean((2, 3)), *(state[key] for key in head))

    from functools import partial

    from resdet.backbones.blocks import Bottleneck
    from resdet.backbones.resnet import ResNet

    def small(num_classes):
        block = partial(Bottleneck, stride_on="1x1")
        return ResNet(block, depths, widths=widths, num_classes=num_classes, expansion=4)

    BACKBONES.register("small", small, channels=(16, 16, 16, 16))
    monkeypatch.setattr(convert_state, "TRUNKS", ("small",))
    try:
        converted = convert(Foreign("a.pth", state))
        net = BACKBONES.build(converted.arguments["backbone"], num_classes=5).eval()
    finally:
        del BACKBONES._entries["small"]
    net.load_state_dict(converted.state, strict=False)
    with torch.no_grad():
        found = net(Preprocess(64, 64)([image]).pixels)
    assert expected.std() > 0.1
    assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


# refusals


def test_unknown_kinds():
    state = {f"blocks.{n}.attn.qkv.weight": torch.ones(1) for n in range(12)} | {"cls_token": torch.ones(1)}
    with pytest.raises(InputError) as caught:
        convert(Foreign("vit.pth", state))
    assert str(caught.value) == (
        "vit.pth\n  found:  no known kind of file: blocks.*.attn.qkv.weight (12), cls_token\n  needed: " + KNOWN
    )


def test_summary():
    assert summary(["a.0.w", "a.1.w", "b", "c.5.w"]) == "a.*.w (2), b, c.5.w"
    assert summary(["a", "b", "c"], shown=2) == "a, b, and 1 more"


@pytest.mark.parametrize(
    ("make", "extra"),
    [
        (foreign_states.detectron2, "roi_heads.mask_head.deconv.weight"),
        (foreign_states.detectron2, "backbone.fpn_lateral2.norm.weight"),
        (foreign_states.mmdetection, "roi_head.mask_head.convs.0.conv.weight"),
        (foreign_states.mmdetection, "neck.fpn_convs.4.conv.weight"),
        (lambda _: foreign_states.caffe2(), "conv_rpn_fpn2_w"),
    ],
)
def test_keys_without_a_place(make, extra):
    state = make(True) | {extra: torch.ones(1)}
    with pytest.raises(InputError, match=f"1 keys of .* without a place in our net: {extra}"):
        convert(Foreign("a.pth", state, style="caffe"))


@pytest.mark.parametrize("make", [foreign_states.detectron2, foreign_states.mmdetection])
def test_half_a_detector(make):
    state = make(True)
    for key in list(state):
        if "bbox_pred" in key or "fc_reg" in key:
            del state[key]
    with pytest.raises(
        InputError, match=r"nothing for roi_head.box_deltas.weight, roi_head.box_deltas.bias of our net"
    ):
        convert(Foreign("a.pth", state, style="caffe"))


@pytest.mark.parametrize(
    ("key", "rows"), [("roi_heads.box_predictor.bbox_pred", 4 * 81), ("proposal_generator.rpn_head.anchor_deltas", 15)]
)
def test_output_layers_that_do_not_fit_each_other(key, rows):
    state = foreign_states.detectron2(True)
    state[f"{key}.weight"] = torch.ones(rows, 2)
    with pytest.raises(InputError, match=r"81 class scores, \d+ box deltas, 3 anchor scores, \d+ anchor deltas"):
        convert(Foreign("a.pkl", state))


def test_two_keys_for_one_place():
    value = torch.ones(1)
    with pytest.raises(InputError, match=r"1 keys .* without a place in our net: rpn.head.conv.0.0.weight"):
        from_torchvision({"rpn.head.conv.weight": value, "rpn.head.conv.0.0.weight": value})


def test_mmdetection_1_is_refused():
    state = foreign_states.mmdetection(True, classes=80)
    state["roi_head.bbox_head.fc_reg.weight"] = foreign_states.hollow("", (4 * 81, 1024))
    with pytest.raises(InputError, match="mmdetection 1, which has other conventions"):
        convert(Foreign("a.pth", state, style="caffe"))


def test_mmdetection_without_a_config_needs_a_style():
    for meta in ({}, {"cfg": "model = ((("}, {"cfg": "model = dict(backbone=dict(depth=50))"}):
        with pytest.raises(InputError, match=r"needed: --channels bgr (.|\n)*or its \.py by --config"):
            convert(Foreign("a.pth", foreign_states.mmdetection(True), meta))


def test_a_style_against_the_config_is_refused():
    meta = {"cfg": MMDETECTION_3.format(**FPN_ANCHORS)}
    for said, found, needed in (
        ({"style": "pytorch"}, "--channels rgb", "--channels bgr"),
        ({"stride_on": "3x3"}, "--stride-on 3x3", "--stride-on 1x1"),
    ):
        with pytest.raises(InputError, match=rf"found:  {found}, or (.|\n)*needed: {needed}, or none"):
            convert(Foreign("a.pth", foreign_states.mmdetection(True), meta, **said))


def test_a_config_of_mmdetection_given_by_the_user():
    """Instead of the one in the file."""
    text = MMDETECTION_3.format(**FPN_ANCHORS)
    meta = {"cfg": MMDETECTION_2}
    converted = convert(Foreign("a.pth", foreign_states.mmdetection(True), meta, config=text))
    assert converted.arguments["backbone"] == "resnet50-1x1" and converted.arguments["shorter_side"] == 600
    with pytest.raises(InputError, match=r"--config\n  found:  no settings"):
        convert(Foreign("a.pth", foreign_states.mmdetection(True), meta, config="import os"))


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("type='nms'), score", "type='soft_nms'), score", "soft_nms"),
        ("ratios=[0.5, 1.0, 2.0]", "ratios=[1.0]", r"anchor_generator.ratios = \[1.0\]\n  needed: \[0.5, 1.0, 2.0\]"),
        ("nms=dict(iou_threshold=0.7", "nms=dict(iou_threshold=0.9", r"test_cfg.rpn.nms.iou_threshold = 0.9"),
        ("type='RoIAlign'", "type='RoIPool'", r"roi_layer.type = 'RoIPool'"),
        ("scales=[8]", "scales=8", r"rpn_head.anchor_generator.scales\n  found:  8\n  needed: a value like \[8\]"),
        ("scales=[8]", "scales=[8, 16]", r"scales \[8, 16\]"),
    ],
)
def test_settings_of_mmdetection_without_a_like(old, new, found):
    text = MMDETECTION_3.format(**FPN_ANCHORS)
    assert old in text
    with pytest.raises(InputError, match=found):
        convert(Foreign("a.pth", foreign_states.mmdetection(True), {"cfg": text.replace(old, new)}))


def test_configs_are_read_and_not_run(tmp_path):
    text = f"a = dict(b=[1, (2, 'x')], c={{'d': -1.5}}, e=open({str(tmp_path / 'made')!r}, 'w'))\nimport os\nf = None"
    assert read_config(text) == {"a": {"b": [1, [2, "x"]], "c": {"d": -1.5}, "e": None}, "f": None}
    assert not (tmp_path / "made").exists()
    assert read_config(3) == {}


def test_backbones_without_projections_are_refused():
    """Two of our nets would fit (plain, and shortcut A), so a file must not be taken for either."""
    state = {k: v for k, v in BACKBONES.build("resnet18").state_dict().items() if "downsample" not in k}
    with pytest.raises(InputError, match=r"a trunk of 2\+2\+2\+2 blocks, conv1 \[64, 3, 7, 7\], that is none"):
        convert(Foreign("a.pth", state, style="pytorch"))


def test_other_trunks_are_refused():
    state = foreign_states.detectron2(True, depths=(3, 8, 36, 4))
    with pytest.raises(InputError, match=r"a trunk of 3\+8\+36\+4 blocks, conv1 \[64, 3, 7, 7\], that is none"):
        convert(Foreign("a.pkl", state))
