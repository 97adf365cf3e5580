"""Half-width ResNet-18 on 200 classes of ImageNet at 32x32 (Tiny ImageNet).

Command:  python tools/train_cls.py configs/resnet18half_imagenet32.py
Data:     data/imagenet32/{train,val}/<class>/*.JPEG
Cost:     4 million images: 3.2 hours at the 350 a second of one CPU core, minutes of a GPU.
Expected: 38.1% top-1 after the 28 epochs of docs/pretrained.md; these 40 in one piece were not run.
"""

from mmengine.config import read_base

with read_base():
    from ._base_.imagenet32 import *

model.update(backbone="resnet18-half")
publish = dict(half=True)  # resdet/backbones/resnet18-half.safetensors
