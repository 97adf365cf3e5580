"""ResNet-110 (option A) on CIFAR-10 (the paper, section 4.2).

Command:  python tools/train_cls.py configs/cifar10_resnet110.py
Cost:     64,000 steps of 128 images at 254 million multiply-adds each way forward.
Expected: 6.43 (6.61 ± 0.16 over 5 runs) % test error, on the original files (the paper, Table 6).
"""

from mmengine.config import read_base

with read_base():
    from ._base_.cifar10 import *

model.update(backbone="cifar-resnet110")
# The paper: 0.01 until the training error is below 80% (about 400 steps), then 0.1 again.
schedule.update(warmup_factor=0.1, warmup_error=0.8, warmup_steps=2_000)
