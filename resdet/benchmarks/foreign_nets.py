"""detectron2 and mmdetection, where they are installed. Written for detectron2 0.6 and mmdetection 3.

Neither resizes inside its net. The images of a benchmark have the wanted size already, so ours resizes nothing either.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resdet.benchmarks.frameworks import NETS, Framework, Losses
from resdet.convert.renaming import Foreign
from resdet.structures import Detections, Target

ZOO = {"r50_fpn": "R_50_FPN_1x", "r50_c4": "R_50_C4_1x", "r101_c4": "R_101_C4_3x"}
CONFIGS = {True: "faster-rcnn_r50_fpn_1x_coco", False: "faster-rcnn_r50-caffe_c4-1x_coco"}


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


DETECTRON2, MMDETECTION = _Detectron2(), _MMDetection()
