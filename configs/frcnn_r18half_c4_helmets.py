"""The C4 net of appendix A on helmets and heads, beside the pyramid of frcnn_r18half_fpn_helmets on the same schedule.

Command:  python tools/train_det.py configs/frcnn_r18half_c4_helmets.py
"""

from mmengine.config import read_base

with read_base():
    from .frcnn_r18half_fpn_helmets import *

from resdet.detection.build import faster_rcnn_c4

model = dict(
    type=faster_rcnn_c4,
    backbone="resnet18-half",
    init="pretrained",
    frozen_stages=0,
    shorter_side=(320, 352, 384, 416, 448, 384),
    longer_side=768,
    anchor_sizes=(16, 32, 64, 128, 256),
    pooling="align",
    train_proposals=(2000, 500),
    test_proposals=(1000, 300),
    nms_iou=0.5,
)
