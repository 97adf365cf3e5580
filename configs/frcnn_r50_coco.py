"""Faster R-CNN on ResNet-50-C4, COCO: appendix A with the smaller net.

Command:  torchrun --nproc_per_node=8 tools/train_det.py configs/frcnn_r50_coco.py --launcher pytorch
Cost:     320,000 steps of 8 images; days of 8 GPUs, not run here.
Expected: not in the paper; below the 27.2 of ResNet-101.
"""

from mmengine.config import read_base

with read_base():
    from .frcnn_r101_coco import *

model.update(backbone="resnet50", init="work_dirs/resnet50_imagenet/resnet50.safetensors")
