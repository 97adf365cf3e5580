"""How nets of a framework are built and called, and ours with their weights.

torchvision has no C4 net: that one is put together from torchvision's parts in the plain way. detectron2 0.6 and
mmdetection 3 are there where they are installed; neither resizes inside its net. The images of a benchmark have the
wanted size already, so ours resizes nothing either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops.misc import FrozenBatchNorm2d

from resdet.backbones.weights import load_exactly
from resdet.convert.renaming import Foreign
from resdet.convert.states import convert, from_torchvision
from resdet.detection import build
from resdet.detection.faster_rcnn import FasterRCNN
from resdet.structures import Detections, Target

NETS = {"r50_fpn": (50, True), "r50_c4": (50, False), "r101_c4": (101, False)}
"""Depth, and whether it has a pyramid. The C4 nets stride on the first 1x1, as the paper's and detectron2's do."""
NUM_CLASSES = 80
ANCHOR_SIZES = (32, 64, 128, 256, 512)
C4_CUTS = {"train": (2000, 1000), "test": (6000, 1000)}
"""Boxes before and after the RPN's NMS; at test detectron2's, so that 1,000 regions do reach the head."""
ZOO = {"r50_fpn": "R_50_FPN_1x", "r50_c4": "R_50_C4_1x", "r101_c4": "R_101_C4_3x"}
CONFIGS = {True: "faster-rcnn_r50_fpn_1x_coco", False: "faster-rcnn_r50-caffe_c4-1x_coco"}
SMALL = (64, 96)
"""Size of the image that random weights are set right on."""

Losses = Mapping[str, Tensor]
Size = tuple[int, int]


class Framework:
    """How nets of a framework are built and called. Images are uint8 RGB (3, H, W) on the CPU, targets are ours.

    Each has ``build(name)``, a net of :data:`NETS` with random weights on the CPU; ``detect(net, images)``;
    ``losses(net, images, targets)``; ``foreign(net)``, its weights to be converted.
    """

    last_norm: str
    """Of a bottleneck."""
    layers: tuple[str, str, str, str]
    """Objectness, deltas of the RPN, classes, deltas of the head."""
    background = -1
    """Its place among the classes."""

    def set_size(self, net: nn.Module, hw: Size) -> None:
        """Tell the net the size to resize to, where it does so itself."""

    def twin(self, theirs: nn.Module, name: str, hw: Size) -> FasterRCNN:
        """Our net with the weights and the settings of theirs."""
        foreign = self.foreign(theirs)
        found = convert(foreign)
        arguments = {**found.arguments, "shorter_side": min(hw), "longer_side": max(hw)}
        ours = getattr(build, found.builder)(**arguments)
        load_exactly(ours, found.state, source=foreign.source)
        return ours


# --- torchvision


class _Torchvision(Framework):
    """Its FPN nets as they are, and C4 nets of its parts."""

    last_norm = "bn3"
    layers = (
        "rpn.head.cls_logits",
        "rpn.head.bbox_pred",
        "roi_heads.box_predictor.cls_score",
        "roi_heads.box_predictor.bbox_pred",
    )
    background = 0

    def build(self, name: str) -> nn.Module:
        from torchvision.models import detection
        from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

        depth, pyramid = NETS[name]
        if not pyramid:
            return _build_c4(depth)
        trunk = resnet_fpn_backbone(
            backbone_name=f"resnet{depth}", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
        )
        return detection.FasterRCNN(trunk, NUM_CLASSES + 1, min_size=min(SMALL), max_size=max(SMALL))

    def set_size(self, net: Any, hw: Size) -> None:
        net.transform.min_size, net.transform.max_size = (min(hw),), max(hw)

    @torch.no_grad()
    def detect(self, net: nn.Module, images: Sequence[Tensor]) -> list[Detections]:
        return [Detections(a["boxes"], a["scores"], a["labels"] - 1) for a in net(_floats(net, images))]

    def losses(self, net: nn.Module, images: Sequence[Tensor], targets: Sequence[Target]) -> Losses:
        pixels = _floats(net, images)
        device = pixels[0].device
        return net(pixels, [{"boxes": t.boxes.to(device), "labels": t.labels.to(device) + 1} for t in targets])

    def foreign(self, net: nn.Module) -> Foreign:
        return Foreign("torchvision", net.state_dict())

    def twin(self, theirs: nn.Module, name: str, hw: Size) -> FasterRCNN:
        depth, pyramid = NETS[name]
        return super().twin(theirs, name, hw) if pyramid else _c4_twin(theirs, depth, hw)


class Conv4(nn.Module):
    """conv1 to conv4_x: a ``backbone``."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.out_channels = body, 1024

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) to the one map (N, 1024, H / 16, W / 16)."""
        return self.body(pixels)


class Conv5Mean(nn.Module):
    """conv5_x on each region, then the mean: a ``box_head``."""

    def __init__(self, conv5: nn.Module) -> None:
        super().__init__()
        self.conv5 = conv5

    def forward(self, pooled: Tensor) -> Tensor:
        """(R, 1024, 14, 14) to (R, 2048)."""
        return self.conv5(pooled).mean(dim=(2, 3))


def _floats(net: nn.Module, images: Sequence[Tensor]) -> list[Tensor]:
    device = next(net.parameters()).device
    return [image.to(device).float() / 255 for image in images]


def _build_c4(depth: int) -> nn.Module:
    from torchvision.models import detection, resnet
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
    from torchvision.ops import MultiScaleRoIAlign

    net = getattr(resnet, f"resnet{depth}")(norm_layer=FrozenBatchNorm2d)
    for stage in (net.layer2, net.layer3, net.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    for frozen in (net.conv1, net.layer1):
        frozen.requires_grad_(False)
    return detection.FasterRCNN(
        Conv4(IntermediateLayerGetter(net, {"layer3": "0"})),
        rpn_anchor_generator=AnchorGenerator((ANCHOR_SIZES,), ((0.5, 1.0, 2.0),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], output_size=14, sampling_ratio=2),
        box_head=Conv5Mean(net.layer4),
        box_predictor=FastRCNNPredictor(2048, NUM_CLASSES + 1),
        **{f"rpn_pre_nms_top_n_{mode}": before for mode, (before, _) in C4_CUTS.items()},
        **{f"rpn_post_nms_top_n_{mode}": after for mode, (_, after) in C4_CUTS.items()},
        min_size=min(SMALL),
        max_size=max(SMALL),
    )


def _c4_twin(theirs: nn.Module, depth: int, hw: Size) -> FasterRCNN:
    ours = build.faster_rcnn_c4(
        backbone=f"resnet{depth}-1x1",
        num_classes=NUM_CLASSES,
        shorter_side=min(hw),
        longer_side=max(hw),
        anchor_sizes=ANCHOR_SIZES,
        pooling="align",
        half_pixel=False,
        rois_per_image=512,
        train_proposals=C4_CUTS["train"],
        test_proposals=C4_CUTS["test"],
        nms_iou=0.5,
    )
    ours.roi_head.beta = 1 / 9  # as torchvision's, for losses that can be compared
    head, state = "roi_heads.box_head.conv5.", theirs.state_dict()
    rest = from_torchvision({key: value for key, value in state.items() if not key.startswith(head)})
    conv5 = {key.removeprefix(head): value for key, value in state.items() if key.startswith(head)}
    load_exactly(ours, rest | {f"roi_head.embedding.conv5.{k}": v for k, v in conv5.items()}, source="torchvision")
    return ours


# --- detectron2 and mmdetection


def _bgr(images: Sequence[Tensor]) -> list[Tensor]:
    return [image.flip(0) for image in images]


class _Detectron2(Framework):
    """Its model zoo's nets."""

    last_norm = "conv3.norm"
    layers = (
        "proposal_generator.rpn_head.objectness_logits",
        "proposal_generator.rpn_head.anchor_deltas",
        "roi_heads.box_predictor.cls_score",
        "roi_heads.box_predictor.bbox_pred",
    )

    def build(self, name: str) -> nn.Module:
        from detectron2 import model_zoo
        from detectron2.modeling import build_model

        config = model_zoo.get_config(f"COCO-Detection/faster_rcnn_{ZOO[name]}.yaml")
        config.MODEL.DEVICE = "cpu"
        return build_model(config)

    @torch.no_grad()
    def detect(self, net: nn.Module, images: Sequence[Tensor]) -> list[Detections]:
        answers = [answer["instances"] for answer in net([{"image": image} for image in _bgr(images)])]
        return [Detections(a.pred_boxes.tensor, a.scores, a.pred_classes) for a in answers]

    def losses(self, net: nn.Module, images: Sequence[Tensor], targets: Sequence[Target]) -> Losses:
        from detectron2.structures import Boxes, Instances
        from detectron2.utils.events import EventStorage

        truth = [Instances(t.original_hw, gt_boxes=Boxes(t.boxes), gt_classes=t.labels) for t in targets]
        with EventStorage():  # its heads write figures into one
            pairs = zip(_bgr(images), truth, strict=True)
            return net([{"image": image, "instances": instances} for image, instances in pairs])

    def foreign(self, net: nn.Module) -> Foreign:
        return Foreign("detectron2", net.state_dict())


class _MMDetection(Framework):
    """The nets of the configs that it brings."""

    last_norm = "bn3"
    layers = ("rpn_head.rpn_cls", "rpn_head.rpn_reg", "roi_head.bbox_head.fc_cls", "roi_head.bbox_head.fc_reg")

    def build(self, name: str) -> nn.Module:
        import mmdet
        from mmdet.apis import init_detector

        depth, pyramid = NETS[name]
        config = Path(mmdet.__file__).parent / ".mim" / "configs" / "faster_rcnn" / f"{CONFIGS[pyramid]}.py"
        depths = {"model.backbone.depth": depth, "model.backbone.init_cfg": None}
        depths |= {} if pyramid else {"model.roi_head.shared_head.depth": depth}
        return init_detector(str(config), None, device="cpu", cfg_options=depths)

    @torch.no_grad()
    def detect(self, net: nn.Module, images: Sequence[Tensor]) -> list[Detections]:
        answers = [sample.pred_instances for sample in _call_mmdetection(net, images, None, "predict")]
        return [Detections(a.bboxes, a.scores, a.labels) for a in answers]

    def losses(self, net: nn.Module, images: Sequence[Tensor], targets: Sequence[Target]) -> Losses:
        losses = _call_mmdetection(net, images, targets, "loss")
        return {key: sum(value) if isinstance(value, list) else value for key, value in losses.items()}

    def foreign(self, net: Any) -> Foreign:
        return Foreign("mmdetection", net.state_dict(), {"cfg": net.cfg.pretty_text})


def _call_mmdetection(net: Any, images: Sequence[Tensor], targets: Sequence[Target] | None, mode: str) -> Any:
    from mmdet.structures.det_data_sample import DetDataSample, InstanceData

    samples = []
    for number, image in enumerate(images):
        hw = tuple(image.shape[1:])
        samples.append(DetDataSample(metainfo={"img_shape": hw, "ori_shape": hw, "scale_factor": (1.0, 1.0)}))
        if targets:
            samples[-1].gt_instances = InstanceData(bboxes=targets[number].boxes, labels=targets[number].labels)
    data = net.data_preprocessor({"inputs": _bgr(images), "data_samples": samples}, training=targets is not None)
    return net(**data, mode=mode)


_TORCHVISION = _Torchvision()
FRAMEWORKS: dict[str, tuple[str, Framework]] = {
    "torchvision": ("torchvision", _TORCHVISION),
    "detectron2": ("detectron2", _Detectron2()),
    "mmdetection": ("mmdet", _MMDetection()),
    "onnxruntime": ("onnxruntime", _TORCHVISION),  # runtimes (:mod:`.runtimes`): torchvision's weights in our graph
    "openvino": ("openvino", _TORCHVISION),
}
"""Those to measure beside, and what each is imported as."""
