"""Pre-activation ResNet-110 on CIFAR-10 (He et al. 2016, "Identity mappings in deep residual networks").

Command:  python tools/train_cls.py configs/cifar10_preresnet110.py
Cost:     64,000 steps of 128 images at 253 million multiply-adds each way forward.
Expected: 6.37 % test error, on the original files (that paper, Table 3).
"""

from mmengine.config import read_base

with read_base():
    from ._base_.cifar10 import *

model.update(backbone="cifar-preresnet110")
# As that paper: a warm-up at 0.01, here until the training error is below 80%.
schedule.update(warmup_factor=0.1, warmup_error=0.8, warmup_steps=2_000)
