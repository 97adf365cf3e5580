"""A small pyramid net for one's own data: a few hundred annotated images, one GPU or a patient CPU.

Command:  python tools/train_det.py configs/frcnn_r18_fpn_own.py
Data:     COCO form: data/own/{train,val}.json and data/own/images; class names come from the files. For VOC form and
          for other places see the README, "Your own data".
Cost:     500 images, 20 epochs, 1,250 steps: minutes on a GPU. Below 200 images 500 steps, in more epochs.

The backbone is torchvision's ResNet-18 with its ImageNet weights, downloaded at first use. Without a network the
half-width ResNet-18 that comes with the package takes its place (docs/pretrained.md).
"""

from resdet.datasets.coco import read_coco
from resdet.detection.build import faster_rcnn_fpn

task = "detection"
metric = "coco"
train_data = dict(type=read_coco, annotation_file="data/own/train.json", image_root="data/own/images")
test_data = dict(type=read_coco, annotation_file="data/own/val.json", image_root="data/own/images")
model = dict(
    type=faster_rcnn_fpn,
    backbone="torchvision/resnet18",
    init="pretrained",
    fallback="resnet18-half",
    frozen_stages=1,
    shorter_side=(480, 512, 544, 576, 608, 640),
    longer_side=1066,
    pyramid_channels=128,
    head_width=512,
    rois_per_image=256,
)
loader = dict(batch_size=8, test_batch_size=4)
optimizer = dict(lr=0.01, batch_size=8, clip_norm=10.0)
schedule = dict(length=20, least_steps=500, policy="cosine", warmup_steps=100)
