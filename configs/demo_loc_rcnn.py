"""The localization demo, second stage: an R-CNN on the first one's proposals.

Command:  python tools/train_loc.py configs/demo_loc_rcnn.py
Cost:     minutes on two CPU cores.
Figures:  the rows "+ R-CNN" of the README's table of this demo.
"""

from resdet.studies.shapes.sources import shapes_loc
from resdet.localization.build import region_localizer

task = "localization"
metric = "localization"
train_data = dict(type=shapes_loc, split="train")
test_data = dict(type=shapes_loc, split="val")
model = dict(
    type=region_localizer,
    backbone="resnet18-half",
    init="work_dirs/demo_loc_cls/resnet18-half.safetensors",
    side=64,  # about the size of an object in the classifier's crops
)
regions = dict(first="work_dirs/demo_loc/last.pth", per_image=8)
loader = dict(batch_size=8, workers=1, test_batch_size=9)
optimizer = dict(lr=0.01, batch_size=8, clip_norm=10.0)
schedule = dict(length=2, policy="cosine", warmup_steps=50, validate_every=2)
run = dict(log_every=50)
test = dict(view="dense", sides=(96, 128), proposals=20, classifier_crop=96)
