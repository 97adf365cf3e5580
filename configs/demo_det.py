"""The demo, second half: Faster R-CNN with a feature pyramid on the embedded world.

Command:  python tools/train_det.py configs/demo_det.py
"""

from resdet.studies.shapes.sources import shapes
from resdet.detection.build import faster_rcnn_fpn

task = "detection"
metric = "coco"
train_data = dict(type=shapes, split="train")
test_data = dict(type=shapes, split="val")
model = dict(
    type=faster_rcnn_fpn,
    backbone="resnet18-half",
    init="work_dirs/demo_cls/resnet18-half.safetensors",
    frozen_stages=0,
    shorter_side=192,
    longer_side=256,
    anchor_sizes=(16, 32, 64, 96, 128),
    pyramid_channels=64,
    head_width=256,
    rois_per_image=64,
    train_proposals=(500, 300),
    test_proposals=(300, 100),
)
loader = dict(batch_size=4, workers=1, test_batch_size=4)
optimizer = dict(lr=0.02, batch_size=4, clip_norm=10.0)
schedule = dict(length=4, policy="cosine", warmup_steps=100, validate_every=4)
run = dict(log_every=25)
test = dict(region_side=64)  # of the crops that its backbone was trained on
