"""The localization demo, first stage: a per-class RPN on the embedded images, fine-tuned from the classifier.

Command:  python tools/train_loc.py configs/demo_loc.py
Cost:     minutes on two CPU cores.
Figures:  the rows "per-class RPN" and "dense" of the README's table of this demo.
"""

from resdet.studies.shapes.sources import shapes_loc
from resdet.localization.build import per_class_rpn_localizer

task = "localization"
metric = "localization"
train_data = dict(type=shapes_loc, split="train")
test_data = dict(type=shapes_loc, split="val")
model = dict(
    type=per_class_rpn_localizer,
    backbone="resnet18-half",
    init="work_dirs/demo_loc_cls/resnet18-half.safetensors",
    crop=96,
    anchor_sizes=(32, 56, 90),
)
crop = dict(shorter_side=(100, 144))  # of the classifier's crops, so that objects have the sizes that it knows
loader = dict(batch_size=32, workers=1, test_batch_size=9)
optimizer = dict(lr=0.02, batch_size=32, clip_norm=10.0)
schedule = dict(length=8, policy="cosine", warmup_steps=50, validate_every=8)
run = dict(log_every=50)
test = dict(classifier_crop=96)
