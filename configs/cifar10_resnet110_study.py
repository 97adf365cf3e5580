"""Shortcuts and activation orders of ResNet-110 on CIFAR-10 (He et al. 2016, "Identity mappings", Tables 1 and 2).

Command:  python tools/train_cls.py configs/cifar10_resnet110_study.py --work-dir work_dirs/study/gate-6 --cfg-options
          backbone.shortcut=exclusive-gate backbone.gate_bias=-6
          (backbone.order=bn-after-addition and the like for Table 2; seeds by --seeds 0 1 2)
          python tools/analyze_cls.py studies work_dirs/study/*      prints both tables, the paper beside ours
Cost:     64,000 steps of 128 images at 253 million multiply-adds each way forward, for each row.
Expected: 6.61 % test error as it stands, on the original files; 8.70 % with the gate above (that paper, Table 1).
"""

from mmengine.config import read_base

with read_base():
    from ._base_.cifar10 import *

from resdet.backbones.custom import define_net

backbone = dict(
    type=define_net,
    name="cifar-study110",
    stem="cifar",
    stages=(("basic", 18, 16, 1), ("basic", 18, 32, 2), ("basic", 18, 64, 2)),
    shortcut="A",
)
model.update(backbone="cifar-study110")
# As that paper: a warm-up at 0.01, here until the training error is below 80%.
schedule.update(warmup_factor=0.1, warmup_error=0.8, warmup_steps=2_000)
