"""The pyramid of frcnn_r18half_fpn_helmets with global context (the paper, appendix B).

Command:  python tools/train_det.py configs/frcnn_r18half_fpn_context_helmets.py
"""

from mmengine.config import read_base

with read_base():
    from .frcnn_r18half_fpn_helmets import *

model.update(context=True)
