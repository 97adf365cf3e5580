"""Blood cells under the microscope (BCCD, VOC form, 292 images, 3 classes) on two CPU cores: a real small data set.

Command:  make demo, then: python tools/train_det.py configs/frcnn_r18half_fpn_bccd.py
Data:     data/bccd with Annotations/, JPEGImages/ and ImageSets/Main/{trainval,test}.txt
Cost:     see the README's table.

It starts from the demo's detector, as an engineer would start from any detector at hand: everything but the class
layers is taken over.
"""

from resdet.datasets.voc import read_voc
from resdet.detection.build import faster_rcnn_fpn

task = "detection"
metric = "voc12"
load_from = "work_dirs/demo_det/best.pth"
augmentation = ("flip", "vertical_flip", "colour")
train_data = dict(type=read_voc, splits=[("data/bccd", "trainval")])
test_data = dict(type=read_voc, splits=[("data/bccd", "test")])
model = dict(
    type=faster_rcnn_fpn,
    backbone="resnet18-half",
    frozen_stages=0,
    shorter_side=(320, 352, 384),
    longer_side=640,
    anchor_sizes=(24, 48, 96, 160, 256),
    pyramid_channels=64,
    head_width=256,
    rois_per_image=128,
    train_proposals=(500, 500),
    test_proposals=(500, 300),
)
loader = dict(batch_size=4, workers=1, test_batch_size=4)
optimizer = dict(lr=0.02, batch_size=4, clip_norm=10.0)
schedule = dict(length=12, policy="cosine", warmup_steps=50, validate_every=6)
run = dict(log_every=25)
