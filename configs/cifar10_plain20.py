"""Plain-20, without shortcuts, on CIFAR-10 (the paper, section 4.2).

Command:  python tools/train_cls.py configs/cifar10_plain20.py
Cost:     64,000 steps of 128 images at 41 million multiply-adds each way forward.
Expected: no figure in the paper's tables; in its Fig. 6 deeper plain nets are worse.
"""

from mmengine.config import read_base

with read_base():
    from ._base_.cifar10 import *

model.update(backbone="cifar-plain20")
