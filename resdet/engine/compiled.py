"""torch.compile where it pays: the convolutional parts, in place, so that names in the state dict stay.

What stands between them (anchors, sampling, NMS) has shapes that depend on the data and stays as it is.
"""

from __future__ import annotations

from torch import nn

from resdet.detection.faster_rcnn import FasterRCNN


def compile_parts(net: nn.Module, mode: str) -> nn.Module:
    """Compile the trunk, the neck, the RPN's head and the region head of a detector, or the net of any other task.

    Args:
        net: changed in place.
        mode: ``"off"``, or of ``torch.compile``: ``"default"``, or ``"reduce-overhead"``, which on a GPU replays CUDA
            graphs. Both compile once for each size of batch: see ``multiple`` of the detectors.

    Returns:
        The net.
    """
    if mode == "off":
        return net
    if isinstance(net, FasterRCNN):
        parts = (net.backbone, net.neck, net.rpn.head, net.roi_head.embedding)
    else:
        parts = (getattr(net, "net", net),)
    for part in parts:
        part.compile(mode=mode, dynamic=False if mode == "reduce-overhead" else None)
    return net
