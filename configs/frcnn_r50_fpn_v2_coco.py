"""Faster R-CNN on ResNet-50-FPN, COCO, as torchvision's second version: more layers, BN that learns, a long schedule.

Command:  torchrun --nnodes=4 --nproc_per_node=8 tools/train_det.py configs/frcnn_r50_fpn_v2_coco.py --launcher pytorch
Cost:     400 epochs, 739,200 steps of 64 images, 33 times a "1x" schedule; weeks of 8 GPUs, not run here.
Expected: mAP@[.5,.95] 46.7 is torchvision's figure with its augmentation and synchronized BN.

Their weights need no training: tools/convert.py fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth work_dirs/v2.pth, then
configs/converted_coco.py.

Differs from torchvision: no large-scale jitter (a scale of 0.1 to 2 towards 1024 pixels and a crop of 1024x1024), for
which the shorter side is drawn from a wider range and half of the images are cropped, a zoom of 1 to 2; BN averages the
images of one process, not of all; anchors stand a declared stride apart; images without objects take part.
"""

from mmengine.config import read_base

with read_base():
    from ._base_.coco import *

from resdet.detection.build import faster_rcnn_fpn

model = dict(
    type=faster_rcnn_fpn,
    backbone="resnet50",  # from random weights, as they
    frozen_stages=0,
    frozen_batchnorm=False,
    rpn_convs=2,
    head_convs=4,
    batchnorm=True,
    shorter_side=(320, 400, 480, 560, 640, 720, 800),
    half_pixel=False,
    box_beta=1 / 9,
)
augmentation = ("flip", "crop")
loader = dict(batch_size=64)
optimizer = dict(lr=0.1, batch_size=64, weight_decay=4e-5)
schedule = dict(length=400, milestones=(352, 384), warmup_steps=1000, validate_every=10)
