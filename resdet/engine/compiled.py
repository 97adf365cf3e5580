"""Other ways to the same net, in place, so that names in the state dict stay: torch.compile, Winograd in training.

The convolutional parts are compiled. What stands between them (anchors, sampling, NMS) has shapes that depend on the
data and stays as it is.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from resdet.backbones.checkpointing import CheckpointedStage
from resdet.cpu.winograd import train_by_winograd
from resdet.detection.faster_rcnn import FasterRCNN
from resdet.errors import InputError
from resdet.localization.localizer import PerClassLocalizer


def compile_parts(net: nn.Module, mode: str) -> nn.Module:
    """Compile the trunk, the neck, the RPN's head and the region head of a detector; of other nets the net inside.

    Args:
        net: changed in place.
        mode: ``"off"``, or of ``torch.compile``: ``"default"``, or ``"reduce-overhead"``, which on a GPU replays CUDA
            graphs. Both compile once for each size of batch: see ``multiple`` of the detectors.

    Returns:
        The net.

    Raises:
        InputError: a net that computes blocks with learning BN a second time, which the compiler does not take.
    """
    if mode == "off":
        return net
    checkpointed = [stage for stage in net.modules() if isinstance(stage, CheckpointedStage)]
    if any(isinstance(m, _BatchNorm) for stage in checkpointed for m in stage.modules()):
        needed = "one of them off, or a net whose BN is frozen"
        raise InputError("model.checkpoint with run.compile", found="both, and BN that learns", needed=needed)
    if isinstance(net, FasterRCNN):
        parts = (net.backbone, net.neck, net.rpn.head, net.roi_head.embedding)
    else:
        parts = (net.backbone if isinstance(net, PerClassLocalizer) else net.net,)
    for part in parts:
        part.compile(mode=mode, dynamic=False if mode == "reduce-overhead" else None)
    if mode == "reduce-overhead" and hasattr(net, "preprocess"):  # or each part would take back the maps of the last
        net.preprocess.register_forward_pre_hook(_new_step)
    return net


def use_winograd_in_training(net: nn.Module, device: torch.device) -> nn.Module:
    """Let training compute the wide 3x3 convolutions of a net by :mod:`resdet.cpu.winograd`.

    Args:
        net: its convolutions are marked, and stay what they are.
        device: of the training.

    Returns:
        The net.

    Raises:
        InputError: the device is no CPU, or there is no such convolution.
    """
    if device.type != "cpu":
        raise InputError("run.winograd", found=f"True on {device.type}", needed="a CPU, or False: cuDNN chooses itself")
    if not train_by_winograd(net):
        needed = "3x3 convolutions of stride 1, 128 channels or more, in residual blocks, FPN or RPN of ours; or False"
        raise InputError("run.winograd", found="True, and no convolution that it speeds up", needed=needed)
    return net


def _new_step(module: nn.Module, arguments: tuple) -> None:
    torch.compiler.cudagraph_mark_step_begin()
