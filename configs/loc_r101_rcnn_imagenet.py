"""Localization, second stage: an R-CNN on the first one's proposals, ImageNet (the paper's appendix C, Table 13).

Command:  torchrun --nproc_per_node=8 tools/train_loc.py configs/loc_r101_rcnn_imagenet.py --launcher pytorch --amp
Cost:     first the proposals of 544,546 images (1.7 GB beside the first stage's checkpoint), then 40 epochs of one
          region of each; days of 8 GPUs, not run here.
Expected: 10.6% top-5 error with the classes of a dense ResNet-101, 14.4% without this stage (the paper).
"""

from mmengine.config import read_base

with read_base():
    from ._base_.imagenet_loc import *

from resdet.localization.build import region_localizer

model = dict(
    type=region_localizer,
    backbone="resnet101",
    init="work_dirs/resnet101_imagenet/resnet101.safetensors",
)
regions = dict(first="work_dirs/loc_r101_imagenet/best.pth")
# Differs from the paper: it does not say at which scales the first stage sees an image, nor rate and length here.
test = dict(view="dense", sides=(256, 384))
schedule = dict(length=40, milestones=(25, 35), warmup_steps=500, validate_every=40)
