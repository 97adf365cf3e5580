"""Half-width Plain-18 (no shortcuts) on 200 classes of ImageNet at 32x32 (Tiny ImageNet).

Command:  python tools/train_cls.py configs/plain18half_imagenet32.py
Data:     data/imagenet32/{train,val}/<class>/*.JPEG
"""

from mmengine.config import read_base

with read_base():
    from ._base_.imagenet32 import *

model.update(backbone="plain18-half")
