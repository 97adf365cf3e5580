"""Helmets and heads on building sites and in classrooms (from SHWD, VOC form, 2,335 photographs): a real small set.

Command:  python tools/train_det.py configs/frcnn_r18half_fpn_helmets.py
Data:     data/helmets with Annotations/, JPEGImages/ and ImageSets/Main/{train,val}.txt
"""

from resdet.datasets.voc import read_voc
from resdet.detection.build import faster_rcnn_fpn

task = "detection"
metric = "coco"
augmentation = ("flip", "colour")
train_data = dict(type=read_voc, splits=[("data/helmets", "train")])
test_data = dict(type=read_voc, splits=[("data/helmets", "val")])
model = dict(
    type=faster_rcnn_fpn,
    backbone="resnet18-half",
    init="pretrained",
    frozen_stages=0,
    shorter_side=(320, 352, 384, 416, 448, 384),
    longer_side=768,
    anchor_sizes=(16, 32, 64, 128, 256),
    pyramid_channels=128,
    head_width=512,
    rois_per_image=128,
    train_proposals=(1000, 500),
    test_proposals=(500, 300),
)
loader = dict(batch_size=16, workers=2, test_batch_size=4)
optimizer = dict(lr=0.02, batch_size=16, clip_norm=10.0)
schedule = dict(length=10, policy="cosine", warmup_steps=100, validate_every=2)
run = dict(log_every=50)
