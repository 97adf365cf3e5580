"""frcnn_r101_voc with global context and box refinement (the paper's appendix B).

Command:  python tools/train_det.py configs/frcnn_r101_context_voc.py
Cost:     55,000 steps of 2 images; about a day of one GPU, not run here.
Expected: the paper's 85.6 mAP (VOC 07) is of a net that was trained on COCO first (load_from) and tested at several
          scales (--scales 200 400 600 800 1000); without these two it gives no figure.
"""

from mmengine.config import read_base

with read_base():
    from .frcnn_r101_voc import *

model.update(context=True)
test = dict(refine=1, vote=0.5)
