"""ResNet-50 on ImageNet with today's recipe: torchvision's for its second set of weights, but each image once an epoch.

Command:  torchrun --nproc_per_node=8 tools/train_cls.py configs/resnet50_imagenet_modern.py --launcher pytorch --amp
Cost:     600 epochs of 1.28 million crops of 176 pixels; two weeks of one GPU, not run here.
Expected: 80.9% top-1 is torchvision's figure with repeated augmentation (about 0.1 points).
"""

from mmengine.config import read_base

with read_base():
    from ._base_.imagenet import *

from resdet.datasets.modern_view import training_folder_modern

train_data = dict(type=training_folder_modern, root="data/imagenet")
test_data.update(shorter_side=232)
model = dict(type=classifier, backbone="resnet50", label_smoothing=0.1, mixup=0.2, cutmix=1.0, window=6)
loader.update(batch_size=1024)
optimizer = dict(lr=0.5, batch_size=1024, weight_decay=2e-5, norm_weight_decay=0.0)
schedule = dict(length=600, policy="cosine", warmup_steps=6_255, warmup_factor=0.01, validate_every=5)  # of 5 epochs
run.update(ema=0.99997)
