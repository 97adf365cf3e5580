"""Converted nets against slow, plain evaluations of their sources' state dicts, each with its own conventions."""

from __future__ import annotations

import math
from functools import partial

import foreign_states
import pytest
import test_detector_parity as torchvision_parity
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import nms, roi_align

from resdet.backbones.blocks import Bottleneck
from resdet.backbones.registry import BACKBONES
from resdet.backbones.resnet import ResNet
from resdet.backbones.weights import load_exactly
from resdet.convert import renaming as convert_state
from resdet.convert.files import convert_file
from resdet.convert.renaming import Foreign
from resdet.convert.states import convert
from resdet.detection import build
from resdet.engine.checkpoints import read_checkpoint
from resdet.engine.tasks.detection import DetectionAdapter

DEPTHS, WIDTHS, CLASSES = (2, 1, 1, 2), (8, 8, 8, 8), 3
GROUPS = (4, 32)  # of widths of 8: four groups of four channels
HW = (64, 128)  # whole cells on every level, and no resizing
BEFORE, AFTER = 80, 30


@pytest.fixture(scope="module", autouse=True)
def small_backbones():
    """Two registered nets of these convolutions, one of each stride, and one whose 3x3 are in groups."""
    grouped = {"groups": GROUPS[0], "width_per_group": GROUPS[1]}
    kinds = {"small": {}, "small-1x1": {"stride_on": "1x1"}, "small-grouped": grouped}
    for name, how in kinds.items():
        block = partial(Bottleneck, **how)
        builder = partial(ResNet, block, DEPTHS, widths=WIDTHS, expansion=4)
        BACKBONES.register(name, lambda num_classes, b=builder: b(num_classes=num_classes), channels=(32,) * 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert_state, "TRUNKS", (*convert_state.TRUNKS, "small", "small-grouped"))
        yield
    for name in kinds:
        del BACKBONES._entries[name]


class Reference:
    """A source's net from its state dict, one image at a time, box by box.

    Attributes say the conventions: ``detectron2`` names and anchor order or mmdetection's; ``pyramid`` or C4; ``caffe``
    pixels and stride or those of torchvision; ``bgr`` pixels whatever the stride.
    """

    def __init__(self, state, *, detectron2, pyramid, caffe, bgr=False):
        self.state, self.detectron2, self.pyramid, self.caffe, self.bgr = state, detectron2, pyramid, caffe, bgr
        trunk = "backbone.bottom_up." if detectron2 and pyramid else "backbone."
        stages = {n: f"{trunk}res{n}" if detectron2 else f"backbone.layer{n - 1}" for n in (2, 3, 4, 5)}
        if not pyramid:
            stages[5] = "roi_heads.res5" if detectron2 else "roi_head.shared_head.layer4"
        self.stem = f"{trunk}stem.conv1" if detectron2 else "backbone.conv1"
        self.stages = stages
        head = "proposal_generator.rpn_head." if detectron2 else "rpn_head."
        rpn = ("conv", "objectness_logits", "anchor_deltas") if detectron2 else ("rpn_conv", "rpn_cls", "rpn_reg")
        self.rpn = [head + name for name in rpn]
        box = "roi_heads.box_predictor." if detectron2 else "roi_head.bbox_head."
        self.outputs = [box + name for name in (("cls_score", "bbox_pred") if detectron2 else ("fc_cls", "fc_reg"))]

    def layer(self, x, name, **settings):
        weight, bias = self.state[f"{name}.weight"], self.state.get(f"{name}.bias")
        return F.conv2d(x, weight, bias, **settings) if weight.dim() == 4 else F.linear(x, weight, bias)

    def conv_norm(self, x, prefix, place, **settings):
        if self.detectron2:
            name = f"{prefix}.shortcut" if place == "shortcut" else f"{prefix}.conv{place}"
            norm = f"{name}.norm"
        elif place == "shortcut":
            name, norm = f"{prefix}.downsample.0", f"{prefix}.downsample.1"
        else:
            name, norm = f"{prefix}.conv{place}", f"{prefix}.bn{place}"
        weight = self.state[f"{name}.weight"]
        x = F.conv2d(x, weight, groups=x.shape[1] // weight.shape[1], **settings)
        mean, variance, weight, bias = (
            self.state[f"{norm}.{leaf}"].view(-1, 1, 1) for leaf in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * weight + bias

    def stage(self, x, number):
        for block in range(DEPTHS[number - 2]):
            prefix = f"{self.stages[number]}.{block}"
            stride = 2 if number > 2 and block == 0 else 1
            first, second = (stride, 1) if self.caffe else (1, stride)
            shortcut = self.conv_norm(x, prefix, "shortcut", stride=stride) if block == 0 else x
            y = F.relu(self.conv_norm(x, prefix, "1", stride=first))
            y = F.relu(self.conv_norm(y, prefix, "2", stride=second, padding=1))
            x = F.relu(self.conv_norm(y, prefix, "3") + shortcut)
        return x

    def features(self, image):
        if self.caffe:  # as OpenCV reads it
            x = image.flip(0).float() - torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1)
        else:
            x = image.float() - torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
            x = x / torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)
            x = x.flip(0) if self.bgr else x
        stem, place = self.stem.rsplit("conv", 1)
        x = self.conv_norm(x[None], stem.rstrip("."), place, stride=2, padding=3)
        x = F.max_pool2d(F.relu(x), 3, 2, 1)
        maps = []
        for number in (2, 3, 4, 5) if self.pyramid else (2, 3, 4):
            x = self.stage(x, number)
            maps.append(x)
        if not self.pyramid:
            return maps[-1:]
        levels, above = [], None
        for place in (3, 2, 1, 0):
            lateral = f"backbone.fpn_lateral{place + 2}" if self.detectron2 else f"neck.lateral_convs.{place}.conv"
            output = f"backbone.fpn_output{place + 2}" if self.detectron2 else f"neck.fpn_convs.{place}.conv"
            merged = self.layer(maps[place], lateral)
            if above is not None:
                merged = merged + above.repeat_interleave(2, 2).repeat_interleave(2, 3)
            levels.insert(0, self.layer(merged, output, padding=1))
            above = merged
        return [*levels, levels[-1][:, :, ::2, ::2]]

    def cell(self, level):
        """(width, height) of each anchor of a cell, in the source's order; none is rounded."""
        sizes = [32 * 2**level] if self.pyramid else [32, 64, 128, 256, 512]
        pairs = [(s, r) for s in sizes for r in (0.5, 1, 2)]
        if not self.detectron2:
            pairs = [(s, r) for r in (0.5, 1, 2) for s in sizes]
        return [(s / math.sqrt(r), s * math.sqrt(r)) for s, r in pairs]

    def proposals(self, maps):
        """The best boxes and their scores, NMS on each level."""
        kept = []
        for level, feature in enumerate(maps):
            stride = 4 * 2**level if self.pyramid else 16
            shared = F.relu(self.layer(feature, self.rpn[0], padding=1))
            logits, deltas = self.layer(shared, self.rpn[1])[0], self.layer(shared, self.rpn[2])[0]
            rows = []
            for y in range(feature.shape[2]):
                for x in range(feature.shape[3]):
                    for a, (w, h) in enumerate(self.cell(level)):
                        box = decode((x * stride, y * stride, w, h), deltas[4 * a : 4 * a + 4, y, x].tolist())
                        rows.append((float(logits[a, y, x]), box))
            rows = sorted(rows, key=lambda row: -row[0])[:BEFORE]
            rows = [(score, box) for score, box in rows if box[2] - box[0] > 1e-3 and box[3] - box[1] > 1e-3]
            boxes, scores = torch.tensor([box for _, box in rows]), torch.tensor([score for score, _ in rows])
            kept += [rows[i] for i in nms(boxes.double(), scores.double(), 0.7)]
        kept = sorted(kept, key=lambda row: -row[0])[:AFTER]
        return [box for _, box in kept]

    def vector(self, maps, box):
        """The features of one box."""
        roi = torch.tensor([[0.0, *box]])
        if not self.pyramid:
            pooled = roi_align(maps[0], roi, 14, 1 / 16, sampling_ratio=0, aligned=True)
            return self.stage(pooled, 5).mean(dim=(2, 3))
        side = math.sqrt((box[2] - box[0]) * (box[3] - box[1]))
        level = min(max(math.floor(4 + math.log2(side / 224)), 2), 5)
        pooled = roi_align(maps[level - 2], roi, 7, 1 / 2**level, sampling_ratio=0, aligned=True)
        fc = ["roi_heads.box_head.fc1", "roi_heads.box_head.fc2"]
        fc = fc if self.detectron2 else [f"roi_head.bbox_head.shared_fcs.{n}" for n in (0, 1)]
        return F.relu(self.layer(F.relu(self.layer(pooled.flatten(1), fc[0])), fc[1]))

    def detections(self, image):
        """(box, score, label) of each, NMS 0.5 in each class."""
        maps = self.features(image)
        candidates = []
        for box in self.proposals(maps):
            vector = self.vector(maps, box)
            scores = self.layer(vector, self.outputs[0])[0].softmax(0)
            deltas = self.layer(vector, self.outputs[1])[0].view(-1, 4) / torch.tensor([10.0, 10, 5, 5])
            w, h = box[2] - box[0], box[3] - box[1]
            reference = (box[0] + w / 2, box[1] + h / 2, w, h)
            for label in range(CLASSES):  # the last score is the background's
                if scores[label] > 0.05:
                    place = label if len(deltas) > 1 else 0
                    candidates.append((decode(reference, deltas[place].tolist()), float(scores[label]), label))
        kept = []
        for label in range(CLASSES):
            own = [c for c in candidates if c[2] == label]
            if own:
                boxes, scores = torch.tensor([c[0] for c in own]), torch.tensor([c[1] for c in own])
                kept += [own[i] for i in nms(boxes.double(), scores.double(), 0.5)]
        return sorted(kept, key=lambda c: -c[1])[:100]


def decode(reference, deltas):
    """A box from (centre x, centre y, width, height) and deltas, clipped to the image."""
    x, y, w, h = reference
    dx, dy, dw, dh = deltas
    x, y = x + dx * w, y + dy * h
    w, h = w * math.exp(min(dw, math.log(1000 / 16))), h * math.exp(min(dh, math.log(1000 / 16)))
    corners = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
    return [min(max(c, 0), limit) for c, limit in zip(corners, (HW[1], HW[0], HW[1], HW[0]), strict=True)]


def picture():
    """Smooth blobs rather than noise, which every filter averages away."""
    coarse = torch.rand(1, 3, 6, 7, generator=torch.Generator().manual_seed(2)) * 255
    return F.interpolate(coarse, HW, mode="bicubic")[0].clamp(0, 255).byte()


def enliven(reference):
    """Outputs that vary from place to place: each channel of mean 0 and a set deviation."""
    state = reference.state
    if reference.caffe:  # the pixels' deviation is in conv1
        state[f"{reference.stem}.weight"] = state[f"{reference.stem}.weight"] / 60
    maps = reference.features(picture())
    shared = torch.cat([F.relu(reference.layer(m, reference.rpn[0], padding=1)).flatten(2) for m in maps], 2)[0]
    rpn = [(reference.rpn[1], 1.5), (reference.rpn[2], 0.3)]
    for name, deviation in rpn:
        standardise(state, name, state[f"{name}.weight"].flatten(1) @ shared, deviation)
    vectors = torch.cat([reference.vector(maps, box) for box in reference.proposals(maps)])
    for name, deviation in zip(reference.outputs, (1.5, 1.0), strict=True):
        standardise(state, name, state[f"{name}.weight"] @ vectors.T, deviation)
    return reference


def standardise(state, name, values, deviation):
    factor = deviation / values.std(dim=1)
    weight = state[f"{name}.weight"]
    state[f"{name}.weight"] = weight * factor.view(-1, *[1] * (weight.dim() - 1))
    state[f"{name}.bias"] = -values.mean(dim=1) * factor + 0.1 * torch.arange(len(factor)) / len(factor)


@pytest.mark.parametrize("agnostic", [False, True], ids=["per-class", "agnostic"])
@pytest.mark.parametrize(
    ("source", "pyramid", "style"),
    [
        ("detectron2", False, "caffe"),
        ("detectron2", True, "caffe"),
        ("detectron2", True, "pytorch"),
        ("detectron2", True, None),  # ResNeXt: its groups tell
        ("mmdetection", False, "caffe"),
        ("mmdetection", True, "caffe"),
        ("mmdetection", True, "pytorch"),
    ],
)
@torch.no_grad()
def test_same_detections(source, pyramid, style, agnostic):
    make = getattr(foreign_states, source)
    sizes = {"depths": DEPTHS, "widths": WIDTHS, "classes": CLASSES, "agnostic": agnostic}
    if style is None:
        sizes["groups"] = GROUPS
    state = make(pyramid, **sizes, make=foreign_states.Random(3), pyramid_width=16, head_width=32)
    reference = Reference(
        state, detectron2=source == "detectron2", pyramid=pyramid, caffe=style == "caffe", bgr=style is None
    )
    enliven(reference)
    expected = reference.detections(picture())

    converted = convert(Foreign("a.pth", state, style=style))
    arguments = converted.arguments | {
        **{"shorter_side": HW[0], "longer_side": HW[1], "test_proposals": (BEFORE, AFTER), "max_per_image": 100}
    }
    ours = getattr(build, converted.builder)(**arguments).eval()
    load_exactly(ours, converted.state, source=source)
    features = ours.features(ours.preprocess([picture()]).pixels)
    for found, wanted in zip(features, reference.features(picture()), strict=True):
        assert wanted.std() > 0.01
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    found = ours.predict([picture()])[0]
    assert len(expected) > 15 and len({label for _, _, label in expected}) == CLASSES
    assert len(found.boxes) == len(expected)
    boxes = torch.tensor([box for box, _, _ in expected])
    labels = torch.tensor([label for _, _, label in expected])
    # Near-ties may have swapped places: each of theirs is paired with the nearest of its class.
    apart = [b + 1e4 * k[:, None] for b, k in ((boxes, labels), (found.boxes, found.labels))]
    order = torch.cdist(*apart, p=torch.inf).argmin(dim=1)
    assert len(order.unique()) == len(order)
    torch.testing.assert_close(found.boxes[order], boxes, rtol=0, atol=0.01)
    torch.testing.assert_close(found.scores[order], torch.tensor([s for _, s, _ in expected]), rtol=0, atol=1e-4)
    torch.testing.assert_close(found.labels[order], labels)


# torchvision, through a file and the tool's function


def first_version() -> FasterRCNN:
    trunk = resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=3)
    return FasterRCNN(trunk, torchvision_parity.K + 1, **torchvision_parity.SIDES, **torchvision_parity.CUTS)


@pytest.mark.parametrize("build_net", [first_version, torchvision_parity.second_version])
@pytest.mark.parametrize("side", [128, 160], ids=["whole-cells", "61-of-64"])  # the strides that torchvision infers
@torch.no_grad()
def test_torchvision_through_a_file(tmp_path, build_net, side):
    torch.manual_seed(0)
    theirs = torchvision_parity.enliven(build_net()).eval()
    theirs.transform.min_size, theirs.transform.max_size = (side,), side + 64
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    report = convert_file(tmp_path / "theirs.pth", tmp_path / "ours.pth", classes="a,b,c,d,e")
    assert (report.kind, report.classes) == ("torchvision Faster R-CNN FPN", ("a", "b", "c", "d", "e"))
    loaded = read_checkpoint(tmp_path / "ours.pth")
    arguments = {k: v for k, v in loaded["meta"]["model"].items() if k != "type"}
    arguments |= {"shorter_side": side, "longer_side": side + 64, "test_proposals": (100, 100)}
    ours = build.faster_rcnn_fpn(**arguments).eval()
    load_exactly(DetectionAdapter(ours), loaded["state_dict"], source="ours.pth")
    pictures = torchvision_parity.pictures()
    for found, wanted in zip(ours.predict(pictures), [theirs([p / 255])[0] for p in pictures], strict=True):
        boxes, labels = wanted["boxes"], wanted["labels"] - 1  # their background is 0
        assert len(boxes) > 20
        apart = [b + 1e4 * k[:, None] for b, k in ((boxes, labels), (found.boxes, found.labels))]
        order = torchvision_parity.pairing(*apart)
        torch.testing.assert_close(found.boxes[order], boxes, rtol=0, atol=0.01)
        torch.testing.assert_close(found.scores[order], wanted["scores"], rtol=0, atol=1e-4)
