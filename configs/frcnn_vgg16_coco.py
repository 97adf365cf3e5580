"""Faster R-CNN on VGG-16, COCO: the baseline row of the paper's appendix A.

Command:  torchrun --nproc_per_node=8 tools/train_det.py configs/frcnn_vgg16_coco.py --launcher pytorch
Cost:     320,000 steps of 8 images; days of 8 GPUs, not run here.
Expected: mAP@[.5,.95] 21.2, mAP@.5 41.5 (the paper, trained on train, tested on val).

torchvision's ``vgg16`` file serves as ``model.init`` as well.
"""

from mmengine.config import read_base

with read_base():
    from .frcnn_r101_coco import *

from resdet.detection.build import faster_rcnn_vgg16

model.update(type=faster_rcnn_vgg16, backbone="vgg16", init="work_dirs/vgg16_imagenet/vgg16.safetensors")
