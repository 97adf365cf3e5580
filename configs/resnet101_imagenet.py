"""ResNet-101 on ImageNet (the paper, Table 1 and section 3.4), then BN statistics and a published backbone.

Command:  torchrun --nproc_per_node=8 tools/train_cls.py configs/resnet101_imagenet.py --launcher pytorch --amp
Cost:     90 epochs of 1.28 million images at 7.8 GMAC each way forward; days of one GPU, not run here.
Expected: 21.75% top-1 error with 10-crop testing is the paper's; a single centre crop costs about 1 to 2 points more.
"""

from mmengine.config import read_base

with read_base():
    from ._base_.imagenet import *

model.update(backbone="resnet101")
