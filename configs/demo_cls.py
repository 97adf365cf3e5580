"""The demo, first half: pre-train a small residual net on crops of the embedded world.

Command:  python tools/train_cls.py configs/demo_cls.py
"""

from resdet.classification.build import classifier
from resdet.studies.shapes.sources import test_crops, training_crops

task = "classification"
metric = "classification"
train_data = dict(type=training_crops)
test_data = dict(type=test_crops)
model = dict(type=classifier, backbone="resnet18-half", window=2)
loader = dict(batch_size=32, workers=1, test_batch_size=50)
optimizer = dict(lr=0.05, batch_size=32)
schedule = dict(length=10, policy="cosine", warmup_steps=50, validate_every=2)
run = dict(log_every=50)
