"""Nets of two frameworks that have the same work to do: theirs as shipped, and ours with its weights."""

from __future__ import annotations

from contextlib import ExitStack
from importlib import import_module
from operator import attrgetter

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resdet.benchmarks.frameworks import FRAMEWORKS, NUM_CLASSES, SMALL, Framework, Size
from resdet.cpu.folding import fold_batchnorm
from resdet.cpu.winograd import use_winograd
from resdet.detection.faster_rcnn import FasterRCNN
from resdet.errors import InputError
from resdet.structures import Target

OBJECTS = 8
"""Ground-truth boxes on each training image; COCO has 7.3 on average."""
BACKGROUND = 8.0
"""Added to the logits of background: of 1,000 regions, some hundred scores pass 0.05, as in a trained net."""


def framework(name: str) -> Framework:
    """A framework to measure beside.

    Args:
        name: of :data:`FRAMEWORKS`.

    Raises:
        InputError: its package is not installed.
    """
    package, found = FRAMEWORKS[name]
    try:
        import_module(package)
    except ImportError as error:
        extra = ', as after pip install "resdet[peers]"' if package in ("onnxruntime", "openvino") else ""
        needed = f"an environment in which `import {package}` works{extra}, or another framework"
        raise InputError(f"--beside {name}", found=error, needed=needed) from error
    return found


def build_theirs(name: str, net: str, hw: Size, device: torch.device) -> nn.Module:
    """A framework's own net, the same at every call; its random weights give features and scores of usual sizes."""
    frame = framework(name)
    torch.manual_seed(0)
    built = frame.build(net)
    _enliven(frame, built)
    frame.set_size(built, hw)
    return built.to(device)


def images_and_targets(count: int, hw: Size) -> tuple[list[Tensor], list[Target]]:
    """Random blobs (noise would be averaged away by every filter), and boxes of COCO's usual sizes on them."""
    generator = torch.Generator().manual_seed(0)
    height, width = hw
    images, targets = [], []
    for number in range(count):
        blobs = 255 * torch.rand(1, 3, height // 24 + 2, width // 24 + 2, generator=generator)
        images.append(F.interpolate(blobs, hw, mode="bicubic")[0].clamp(0, 255).byte())
        corner = torch.rand(OBJECTS, 2, generator=generator) * torch.tensor([0.7 * width, 0.7 * height])
        side = (0.05 + 0.25 * torch.rand(OBJECTS, 2, generator=generator)) * torch.tensor([width, height])
        labels = torch.randint(0, NUM_CLASSES, (OBJECTS,), generator=generator)
        ignore = torch.zeros(OBJECTS, dtype=torch.bool)
        targets.append(Target(torch.cat([corner, corner + side], 1), labels, ignore, number, hw))
    return images, targets


def ready_for_inference(net: FasterRCNN, *, winograd: bool = False) -> FasterRCNN:
    """What whoever loads a checkpoint of ours for inference does to it, once."""
    net = fold_batchnorm(net).eval()
    return use_winograd(net) if winograd else net


@torch.no_grad()
def _enliven(frame: Framework, net: nn.Module) -> None:
    """Keep residual sums near one, and give the output layers mean 0 and a set deviation of each channel."""
    for block in net.modules():
        if hasattr(block, "conv3"):
            attrgetter(frame.last_norm)(block).weight.fill_(0.25)
    images, _ = images_and_targets(1, SMALL)
    layers = [attrgetter(path)(net) for path in frame.layers]
    seen: dict[nn.Module, list[Tensor]] = {layer: [] for layer in layers}
    net.eval()
    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(layer.register_forward_hook(lambda layer, _, out: seen[layer].append(out)))
        for start, deviations in ((0, (1.5, 0.3)), (2, (2.0, 1.0))):  # the second reads proposals of the first
            for outputs in seen.values():
                outputs.clear()
            frame.detect(net, images)
            for layer, deviation in zip(layers[start:], deviations, strict=False):
                values = torch.cat([out.transpose(0, 1).flatten(1) for out in seen[layer]], dim=1)
                factor = deviation / values.std(dim=1).clamp(min=1e-6)
                layer.weight.mul_(factor.view(-1, *[1] * (layer.weight.dim() - 1)))
                layer.bias.sub_(values.mean(dim=1)).mul_(factor)
    layers[2].bias[frame.background] += BACKGROUND
