"""ILSVRC-2012 with the paper's recipe (section 3.4): batch 256, lr 0.1 divided by 10, 60e4 steps at most."""

from resdet.classification.build import classifier
from resdet.datasets.sources import test_folder, training_folder

task = "classification"
metric = "classification"
train_data = dict(type=training_folder, root="data/imagenet")
test_data = dict(type=test_folder, root="data/imagenet")
loader = dict(batch_size=256, workers=8, test_batch_size=64)
optimizer = dict(lr=0.1, batch_size=256)
# Differs from the paper: it divides the rate "when the error plateaus" and stops at 60e4 steps (120 epochs). These are
# fixed places on a length that every successor found enough.
schedule = dict(length=90, milestones=(30, 60))
run = dict(checkpoint_every=5000, log_every=100)
model = dict(type=classifier, backbone="resnet50")
