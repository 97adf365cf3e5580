"""Plain-18, without shortcuts, on ImageNet (the paper, section 4.1).

Command:  torchrun --nproc_per_node=8 tools/train_cls.py configs/plain18_imagenet.py --launcher pytorch --amp
          python tools/eval.py configs/plain18_imagenet.py work_dirs/plain18_imagenet/best.pth --ten-crop
Cost:     90 epochs of 1.28 million images; days of one GPU, not run here.
Expected: 27.94% top-1 error with 10-crop testing (the paper).
"""

from mmengine.config import read_base

with read_base():
    from ._base_.imagenet import *

model.update(backbone="plain18")
