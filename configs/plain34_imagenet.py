"""Plain-34, without shortcuts, on ImageNet (the paper, section 4.1).

Command:  torchrun --nproc_per_node=8 tools/train_cls.py configs/plain34_imagenet.py --launcher pytorch --amp
          python tools/eval.py configs/plain34_imagenet.py work_dirs/plain34_imagenet/best.pth --ten-crop
Cost:     90 epochs of 1.28 million images; days of one GPU, not run here.
Expected: 28.54% top-1, 10.02% top-5 error with 10-crop testing (the paper).
"""

from mmengine.config import read_base

with read_base():
    from ._base_.imagenet import *

model.update(backbone="plain34")
