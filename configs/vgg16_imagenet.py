"""VGG-16 on ImageNet (Simonyan and Zisserman 2015, section 3.1), the net that Tables 3 and 4 of the paper compare with.

Command:  torchrun --nproc_per_node=8 tools/train_cls.py configs/vgg16_imagenet.py --launcher pytorch --amp
Cost:     74 epochs of 1.28 million images at 15.5 GMAC each way forward; weeks of one GPU, not run here.
Expected: 28.07% top-1, 9.33% top-5 error with 10-crop testing (the paper, Table 3).

Differs from the original: it divides the rate by 10 three times, whenever the validation accuracy stops rising; these
are fixed places on its 74 epochs.
"""

from mmengine.config import read_base

with read_base():
    from ._base_.imagenet import *

model.update(backbone="vgg16")
optimizer.update(lr=0.01, weight_decay=5e-4)
schedule.update(length=74, milestones=(25, 45, 60))
