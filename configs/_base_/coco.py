"""COCO 2017: 118,287 training and 5,000 validation images, 80 classes."""

from resdet.datasets.coco import read_coco

task = "detection"
metric = "coco"
train_data = dict(
    type=read_coco,
    annotation_file="data/coco/annotations/instances_train2017.json",
    image_root="data/coco/train2017",
)
test_data = dict(
    type=read_coco,
    annotation_file="data/coco/annotations/instances_val2017.json",
    image_root="data/coco/val2017",
)
