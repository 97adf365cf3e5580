"""torchvision's detectors. It has no C4 net: that one is put together from torchvision's parts in the plain way.

conv1 to conv4_x are the backbone, RoIAlign makes 14x14 cells, conv5_x and the mean are the ``box_head``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops.misc import FrozenBatchNorm2d

from resdet.backbones.weights import load_exactly
from resdet.benchmarks.frameworks import NETS, NUM_CLASSES, SMALL, Framework, Losses, Size
from resdet.convert.renaming import Foreign
from resdet.convert.states import from_torchvision
from resdet.detection import build
from resdet.detection.faster_rcnn import FasterRCNN
from resdet.structures import Detections, Target

ANCHOR_SIZES = (32, 64, 128, 256, 512)
C4_CUTS = {"train": (2000, 1000), "test": (6000, 1000)}
"""Boxes before and after the RPN's NMS; at test detectron2's, so that 1,000 regions do reach the head."""


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


TORCHVISION = _Torchvision()
