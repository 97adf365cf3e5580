"""Faster R-CNN on ResNet-101-FPN, COCO, three schedules ("3x", 37 epochs).

Command:  torchrun --nproc_per_node=8 tools/train_det.py configs/frcnn_r101_fpn_coco.py --launcher pytorch --amp
Cost:     270,000 steps of 16 images; days of 8 GPUs, not run here.
Expected: mAP@[.5,.95] 42.0 is what nearly these settings give in detectron2 (see frcnn_r50_fpn_coco).
"""

from mmengine.config import read_base

with read_base():
    from .frcnn_r50_fpn_coco import *

model.update(backbone="resnet101", init="work_dirs/resnet101_imagenet/resnet101.safetensors")
schedule.update(length=270_000, milestones=(210_000, 250_000))
