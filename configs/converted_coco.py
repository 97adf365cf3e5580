"""Any detector of COCO's 80 classes that tells its own net, as tools/convert.py writes it from other frameworks' files.

Command:  python tools/convert.py fasterrcnn_resnet50_fpn_coco-258fb6c6.pth work_dirs/torchvision.pth
          python tools/eval.py configs/converted_coco.py work_dirs/torchvision.pth
Expected: the figure of the file's authors, without its ending; the steps of appendix B are flags (--refine --vote ...).

For other classes: a copy of this file with your own test data.
"""

from mmengine.config import read_base

with read_base():
    from ._base_.coco import *

from resdet.detection.build import from_checkpoint

model = dict(type=from_checkpoint)
