"""ResNet-110 on CIFAR-10 with stochastic depth, linear decay to 0.5 (Huang et al. 2016), on the paper's own schedule.

Command:  python tools/train_cls.py configs/cifar10_resnet110_stochastic.py
Cost:     64,000 steps of 128 images at about 190 million multiply-adds each way forward (a quarter of the blocks rest).
Expected: below cifar10_resnet110; Huang's 5.23% are of 500 epochs, three times this length, on the original files.
"""

from mmengine.config import read_base

with read_base():
    from .cifar10_resnet110 import *

model.update(survival=0.5)
