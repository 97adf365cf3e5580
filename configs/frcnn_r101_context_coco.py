"""frcnn_r101_coco with global context: the paper's appendix B, whose other steps are flags of tools/eval.py.

Command:  torchrun --nproc_per_node=8 tools/train_det.py configs/frcnn_r101_context_coco.py --launcher pytorch
          python tools/eval.py configs/frcnn_r101_context_coco.py work_dirs/frcnn_r101_context_coco/best.pth
Cost:     320,000 steps of 8 images; days of 8 GPUs, not run here. conv5_x on one more region for each image.
Expected: mAP@[.5,.95] 30.0, mAP@.5 51.1 with box refinement and voting, which are on below; with --scales 200 400 600
          800 1000 also multi-scale testing, 32.5 and 53.8 (the paper, trained on train, tested on val).
"""

from mmengine.config import read_base

with read_base():
    from .frcnn_r101_coco import *

model.update(context=True)
test = dict(refine=1, vote=0.5)
