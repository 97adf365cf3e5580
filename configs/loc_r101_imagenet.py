"""Localization, first stage: a per-class RPN on ResNet-101, ImageNet (the paper's appendix C, Table 13).

Command:  torchrun --nproc_per_node=8 tools/train_loc.py configs/loc_r101_imagenet.py --launcher pytorch --amp
Cost:     20 epochs of the 544,546 images with boxes; a day of 8 GPUs or less, not run here.
Expected: 13.3% error for the true class at the centre crop, 11.7% with --dense at several scales (the paper).
"""

from mmengine.config import read_base

with read_base():
    from ._base_.imagenet_loc import *

from resdet.localization.build import per_class_rpn_localizer

model = dict(
    type=per_class_rpn_localizer,
    backbone="resnet101",
    init="work_dirs/resnet101_imagenet/resnet101.safetensors",
)
# Differs from the paper: it tells the batch of 256 and 8 anchors of an image, but neither rate nor length. These are
# a third of appendix A's rate for so many images (0.001 for 8), and a tenth of the images that the classifier has seen.
schedule = dict(length=20, milestones=(12, 18), warmup_steps=500, validate_every=2)
