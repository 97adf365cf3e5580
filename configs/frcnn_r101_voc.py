"""Faster R-CNN on ResNet-101-C4, VOC 07+12, tested on VOC 07: appendix A with Faster R-CNN's own settings.

Command:  python tools/train_det.py configs/frcnn_r101_voc.py
Cost:     55,000 steps of 2 images; about a day of one GPU, not run here.
Expected: mAP 76.4 (the paper, VOC 07 test).

Faster R-CNN trains 110,000 steps of one image at lr 0.001, divided by 10 after 80,000; this is the same in steps
of two.
"""

from mmengine.config import read_base

with read_base():
    from ._base_.voc0712 import *

from resdet.detection.build import faster_rcnn_c4

model = dict(
    type=faster_rcnn_c4,
    backbone="resnet101",
    init="work_dirs/resnet101_imagenet/resnet101.safetensors",
    anchor_sizes=(128, 256, 512),
    background_iou=(0.1, 0.5),
)
loader = dict(batch_size=2)
optimizer = dict(lr=0.002, batch_size=2, weight_decay=5e-4)
schedule = dict(unit="step", length=55_000, milestones=(40_000,), validate_every=5_000)
