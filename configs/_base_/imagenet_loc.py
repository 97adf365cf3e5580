"""ILSVRC localization (the paper's appendix C): CLS-LOC images with boxes, fine-tuned from the classification net."""

from resdet.datasets.imagenet_loc import read_imagenet_loc

task = "localization"
metric = "localization"
train_data = dict(type=read_imagenet_loc, root="data/ILSVRC")
test_data = dict(type=read_imagenet_loc, root="data/ILSVRC", split="val")
loader = dict(batch_size=256, workers=8, test_batch_size=16)
optimizer = dict(lr=0.01, batch_size=256)
run = dict(checkpoint_every=2000, log_every=100)
