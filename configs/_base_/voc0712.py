"""PASCAL VOC: trainval of 2007 and 2012 together (16,551 images), tested on 2007 test (4,952), 20 classes."""

from resdet.datasets.voc import read_voc

task = "detection"
metric = "voc07"
train_data = dict(
    type=read_voc,
    splits=[("data/VOCdevkit/VOC2007", "trainval"), ("data/VOCdevkit/VOC2012", "trainval")],
)
test_data = dict(type=read_voc, splits=[("data/VOCdevkit/VOC2007", "test")])
