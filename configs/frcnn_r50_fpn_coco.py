"""Faster R-CNN on ResNet-50-FPN, COCO: today's standard, one schedule ("1x", 12 epochs).

Command:  torchrun --nproc_per_node=8 tools/train_det.py configs/frcnn_r50_fpn_coco.py --launcher pytorch --amp
Cost:     90,000 steps of 16 images; about a day of 8 GPUs, not run here.
Expected: mAP@[.5,.95] 37.9 is what nearly these settings give in detectron2 (it samples RoIAlign adaptively, where 2x2
          points are taken here, strides on the 1x1 convolution, draws a scale for each image, and leaves out images
          without objects).
"""

from mmengine.config import read_base

with read_base():
    from ._base_.coco import *

from resdet.detection.build import faster_rcnn_fpn

model = dict(
    type=faster_rcnn_fpn,
    backbone="resnet50",
    init="work_dirs/resnet50_imagenet/resnet50.safetensors",
    shorter_side=(640, 672, 704, 736, 768, 800),
    train_proposals=(2000, 1000),
)
loader = dict(batch_size=16)
optimizer = dict(lr=0.02, batch_size=16)
schedule = dict(unit="step", length=90_000, milestones=(60_000, 80_000), warmup_steps=1000, validate_every=10_000)
