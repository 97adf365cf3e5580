"""ResNet-110 (option A) on CIFAR-100, with the paper's recipe for CIFAR-10.

Command:  python tools/train_cls.py configs/cifar100_resnet110.py
Cost:     64,000 steps of 128 images at 253 million multiply-adds each way forward.
Expected: no figure in the paper.
"""

from mmengine.config import read_base

with read_base():
    from .cifar10_resnet110 import *

train_data.update(root="data/cifar-100-python.tar.gz", name="cifar100")
test_data.update(root="data/cifar-100-python.tar.gz", name="cifar100")
model.update(mean=(129.3, 124.1, 112.4), std=(68.2, 65.4, 70.4))  # of its training set's channels
