"""Faster R-CNN on VGG-16, VOC 07+12, tested on VOC 07: the baseline row of the paper's appendix A (Ren 2015).

Command:  python tools/train_det.py configs/frcnn_vgg16_voc.py
Cost:     55,000 steps of 2 images; about a day of one GPU, not run here.
Expected: mAP 73.2 (the paper, VOC 07 test).

torchvision's ``vgg16`` file serves as ``model.init`` as well.
"""

from mmengine.config import read_base

with read_base():
    from .frcnn_r101_voc import *

from resdet.detection.build import faster_rcnn_vgg16

model.update(type=faster_rcnn_vgg16, backbone="vgg16", init="work_dirs/vgg16_imagenet/vgg16.safetensors")
