"""Half-width ResNet-18 on 200 classes of ImageNet at 32x32 (Tiny ImageNet).

Command:  python tools/train_cls.py configs/resnet18half_imagenet32.py
Data:     data/imagenet32/{train,val}/<class>/*.JPEG
"""

from mmengine.config import read_base

with read_base():
    from ._base_.imagenet32 import *

model.update(backbone="resnet18-half")
publish = dict(half=True)  # the file in resdet/pretrained/
