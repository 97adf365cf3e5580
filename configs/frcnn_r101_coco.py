"""Faster R-CNN on ResNet-101-C4, COCO: the baseline of the paper's appendix A.

Command:  torchrun --nproc_per_node=8 tools/train_det.py configs/frcnn_r101_coco.py --launcher pytorch
Cost:     320,000 steps of 8 images; days of 8 GPUs, not run here.
Expected: mAP@[.5,.95] 27.2, mAP@.5 48.4 (the paper, trained on train, tested on val).

Differs from the paper: RPN and detector are trained jointly on one mini-batch of 8 images, where the paper alternates
(8 images for the RPN, 16 for the detector).
"""

from mmengine.config import read_base

with read_base():
    from ._base_.coco import *

from resdet.detection.build import faster_rcnn_c4

model = dict(
    type=faster_rcnn_c4,
    backbone="resnet101",
    init="work_dirs/resnet101_imagenet/resnet101.safetensors",
)
loader = dict(batch_size=8)
optimizer = dict(lr=0.001, batch_size=8)
schedule = dict(unit="step", length=320_000, milestones=(240_000,), validate_every=20_000)
