"""The localization demo, first part: pre-train a small residual net on the embedded images, one object in each.

Command:  python tools/train_cls.py configs/demo_loc_cls.py
Cost:     minutes on two CPU cores.
Figures:  the rows that name the five classes (their share of the errors) of the README's table of this demo.
"""

from resdet.classification.build import classifier
from resdet.studies.shapes.sources import test_shapes_loc, training_shapes_loc

task = "classification"
metric = "classification"
train_data = dict(type=training_shapes_loc, crop=96, shorter_side=(100, 144))
test_data = dict(type=test_shapes_loc, crop=96, shorter_side=112)
model = dict(type=classifier, backbone="resnet18-half", window=3)
loader = dict(batch_size=32, workers=1, test_batch_size=45)
optimizer = dict(lr=0.05, batch_size=32)
schedule = dict(length=12, policy="cosine", warmup_steps=50, validate_every=12)
run = dict(log_every=50)
publish = dict(statistics_images=2000)
