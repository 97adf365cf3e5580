"""detectron2 and mmdetection, where they are installed. Written for detectron2 0.6 and mmdetection 3.

Neither resizes inside its net. The images of a benchmark have the wanted size already, so ours resizes nothing either.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resdet.benchmarks.frameworks import NETS, Framework, Losses, Size, converted_twin
from resdet.convert.renaming import Foreign
from resdet.detection.faster_rcnn import FasterRCNN
from resdet.structures import Detections, Target


def _no_size(net: nn.Module, hw: Size) -> None:
    """Nothing to tell."""


def _bgr(images: Sequence[Tensor]) -> list[Tensor]:
    return [image.flip(0) for image in images]


# --- detectron2

ZOO = {"r50_fpn": "R_50_FPN_1x", "r50_c4": "R_50_C4_1x", "r101_c4": "R_101_C4_3x"}


def _build_detectron2(name: str, device: torch.device) -> nn.Module:
    from detectron2 import model_zoo
    from detectron2.modeling import build_model

    config = model_zoo.get_config(f"COCO-Detection/faster_rcnn_{ZOO[name]}.yaml")
    config.MODEL.DEVICE = str(device)
    return build_model(config)


def _detect_detectron2(net: nn.Module, images: Sequence[Tensor]) -> list[Detections]:
    with torch.no_grad():
        answers = [answer["instances"] for answer in net([{"image": image} for image in _bgr(images)])]
    return [Detections(a.pred_boxes.tensor, a.scores, a.pred_classes) for a in answers]


def _losses_detectron2(net: nn.Module, images: Sequence[Tensor], targets: Sequence[Target]) -> Losses:
    from detectron2.structures import Boxes, Instances
    from detectron2.utils.events import EventStorage

    truth = [Instances(t.original_hw, gt_boxes=Boxes(t.boxes), gt_classes=t.labels) for t in targets]
    with EventStorage():  # its heads write figures into one
        pairs = zip(_bgr(images), truth, strict=True)
        return net([{"image": image, "instances": instances} for image, instances in pairs])


def _twin_detectron2(theirs: nn.Module, name: str, hw: Size) -> FasterRCNN:
    return converted_twin(Foreign("detectron2", theirs.state_dict()), hw)


# --- mmdetection

CONFIGS = {True: "faster-rcnn_r50_fpn_1x_coco", False: "faster-rcnn_r50-caffe_c4-1x_coco"}


def _build_mmdetection(name: str, device: torch.device) -> nn.Module:
    import mmdet
    from mmdet.apis import init_detector

    depth, pyramid = NETS[name]
    config = Path(mmdet.__file__).parent / ".mim" / "configs" / "faster_rcnn" / f"{CONFIGS[pyramid]}.py"
    depths = {"model.backbone.depth": depth, "model.backbone.init_cfg": None}
    depths |= {} if pyramid else {"model.roi_head.shared_head.depth": depth}
    return init_detector(str(config), None, device=str(device), cfg_options=depths)


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


def _detect_mmdetection(net: nn.Module, images: Sequence[Tensor]) -> list[Detections]:
    with torch.no_grad():
        answers = [sample.pred_instances for sample in _call_mmdetection(net, images, None, "predict")]
    return [Detections(a.bboxes, a.scores, a.labels) for a in answers]


def _losses_mmdetection(net: nn.Module, images: Sequence[Tensor], targets: Sequence[Target]) -> Losses:
    losses = _call_mmdetection(net, images, targets, "loss")
    return {key: sum(v) if isinstance(v, list) else v for key, v in losses.items() if "loss" in key}


def _twin_mmdetection(theirs: Any, name: str, hw: Size) -> FasterRCNN:
    return converted_twin(Foreign("mmdetection", theirs.state_dict(), {"cfg": theirs.cfg.pretty_text}), hw)


_RPN, _BOX = "proposal_generator.rpn_head", "roi_heads.box_predictor"
FRAMEWORKS = {
    "detectron2": Framework(
        _build_detectron2,
        _no_size,
        _detect_detectron2,
        _losses_detectron2,
        _twin_detectron2,
        last_norm="conv3.norm",
        layers=(f"{_RPN}.objectness_logits", f"{_RPN}.anchor_deltas", f"{_BOX}.cls_score", f"{_BOX}.bbox_pred"),
        background=-1,
    ),
    "mmdetection": Framework(
        _build_mmdetection,
        _no_size,
        _detect_mmdetection,
        _losses_mmdetection,
        _twin_mmdetection,
        last_norm="bn3",
        layers=("rpn_head.rpn_cls", "rpn_head.rpn_reg", "roi_head.bbox_head.fc_cls", "roi_head.bbox_head.fc_reg"),
        background=-1,
    ),
}
