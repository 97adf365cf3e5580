"""The demo's detector with global context (the paper, appendix B): it sees each region beside its whole image.

Command:  make demo, then: python tools/train_det.py configs/demo_det_context.py
Cost:     see the README's table.
"""

from mmengine.config import read_base

with read_base():
    from .demo_det import *

model.update(context=True)
