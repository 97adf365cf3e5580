"""Nets of two frameworks that have the same work to do: theirs as shipped, and ours with its weights.

torchvision has no C4 net. Its reference here is put together from torchvision's parts in the plain way: conv1 to
conv4_x as the backbone, RoIAlign to 14x14, conv5_x and the mean as ``box_head``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from operator import attrgetter
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resdet.backbones.folding import fold_batchnorm
from resdet.backbones.weights import load_exactly
from resdet.backbones.winograd import use_winograd
from resdet.detection import build
from resdet.detection.convert import convert, from_torchvision
from resdet.detection.convert_state import Foreign
from resdet.detection.faster_rcnn import FasterRCNN
from resdet.errors import InputError
from resdet.structures import Detections, Target

NETS = {"r50_fpn": (50, True), "r50_c4": (50, False), "r101_c4": (101, False)}
"""Depth, and whether it has a pyramid. The C4 nets stride on the first 1x1, as the paper's and detectron2's do."""
PACKAGES = {"torchvision": "torchvision", "detectron2": "detectron2", "mmdetection": "mmdet"}
"""Frameworks to measure beside, and what each is imported as."""
NUM_CLASSES = 80
OBJECTS = 8
"""Ground-truth boxes on each training image; COCO has 7.3 on average."""
ANCHOR_SIZES = (32, 64, 128, 256, 512)
C4_CUTS = {"train": (2000, 1000), "test": (6000, 1000)}
"""Boxes before and after the RPN's NMS; at test detectron2's, so that 1,000 regions do reach the head."""
SMALL = (64, 96)
"""Size of the image that random weights are set right on."""
BACKGROUND = 8.0
"""Added to the logits of background: of 1,000 regions, some hundred scores pass 0.05, as in a trained net."""

Losses = Mapping[str, Tensor]
Size = tuple[int, int]


class Framework(NamedTuple):
    """How nets of a framework are built and called. Images are uint8 RGB (3, H, W) on the CPU, targets are ours."""

    build: Callable[[str, torch.device], nn.Module]
    """From a name of :data:`NETS`, with random weights."""
    set_size: Callable[[nn.Module, Size], object]
    """Tell the net the size to resize to."""
    detect: Callable[[nn.Module, Sequence[Tensor]], list[Detections]]
    losses: Callable[[nn.Module, Sequence[Tensor], Sequence[Target]], Losses]
    twin: Callable[[nn.Module, str, Size], FasterRCNN]
    """Our net with the weights of theirs."""
    last_norm: str
    """Of a bottleneck."""
    layers: tuple[str, str, str, str]
    """Objectness, deltas of the RPN, classes, deltas of the head."""
    background: int
    """Its place among the classes."""


def framework(name: str) -> Framework:
    """A framework to measure beside.

    Args:
        name: of :data:`PACKAGES`.

    Raises:
        InputError: its package is not installed.
    """
    try:
        import_module(PACKAGES[name])
    except ImportError as error:
        needed = f"an environment in which `import {PACKAGES[name]}` works, or another framework"
        raise InputError(f"--beside {name}", found=error, needed=needed) from error
    return TORCHVISION if name == "torchvision" else import_module("resdet.benchmarks.foreign_nets").FRAMEWORKS[name]


def build_theirs(name: str, net: str, hw: Size, device: torch.device) -> nn.Module:
    """A framework's own net, the same at every call; its random weights give features and scores of usual sizes."""
    frame = framework(name)
    torch.manual_seed(0)
    built = frame.build(net, torch.device("cpu"))
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


def converted_twin(foreign: Foreign, hw: Size) -> FasterRCNN:
    """Our net with the weights and the settings of a framework's."""
    found = convert(foreign)
    arguments = {**found.arguments, "shorter_side": min(hw), "longer_side": max(hw)}
    ours = getattr(build, found.builder)(**arguments)
    load_exactly(ours, found.state, source=foreign.source)
    return ours


@torch.no_grad()
def _enliven(frame: Framework, net: nn.Module) -> None:
    """Keep residual sums near one, and give the output layers mean 0 and a set deviation of each channel."""
    for block in net.modules():
        if hasattr(block, "conv3"):
            attrgetter(frame.last_norm)(block).weight.fill_(0.25)
    images, _ = images_and_targets(1, SMALL)
    layers = [attrgetter(path)(net) for path in frame.layers]
    net.eval()
    for stage in ((layers[:2], (1.5, 0.3)), (layers[2:], (2.0, 1.0))):  # the second reads proposals of the first
        seen: dict[nn.Module, list[Tensor]] = {layer: [] for layer in stage[0]}
        hooks = [
            layer.register_forward_hook(lambda layer, _, out, seen=seen: seen[layer].append(out)) for layer in seen
        ]
        frame.detect(net, images)
        for hook in hooks:
            hook.remove()
        for layer, deviation in zip(*stage, strict=True):
            values = torch.cat([out.transpose(0, 1).flatten(1) for out in seen[layer]], dim=1)
            factor = deviation / values.std(dim=1).clamp(min=1e-6)
            layer.weight.mul_(factor.view(-1, *[1] * (layer.weight.dim() - 1)))
            layer.bias.sub_(values.mean(dim=1)).mul_(factor)
    layers[2].bias[frame.background] += BACKGROUND


# --- torchvision's


class Conv4(nn.Module):
    """conv1 to conv4_x: a ``backbone``."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.out_channels = body, 1024

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) to the one map (N, 1024, H / 16, W / 16)."""
        return self.body(pixels)


class Conv5Mean(nn.Module):
    """conv5_x on each region, then the mean: a ``box_head``."""

    def __init__(self, conv5: nn.Module) -> None:
        super().__init__()
        self.conv5 = conv5

    def forward(self, pooled: Tensor) -> Tensor:
        """(R, 1024, 14, 14) to (R, 2048)."""
        return self.conv5(pooled).mean(dim=(2, 3))


def _build_torchvision(name: str, device: torch.device) -> nn.Module:
    from torchvision.models import detection, resnet
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
    from torchvision.ops import MultiScaleRoIAlign
    from torchvision.ops.misc import FrozenBatchNorm2d

    depth, pyramid = NETS[name]
    size = {"min_size": min(SMALL), "max_size": max(SMALL)}
    if pyramid:
        trunk = resnet_fpn_backbone(
            backbone_name=f"resnet{depth}", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
        )
        return detection.FasterRCNN(trunk, NUM_CLASSES + 1, **size).to(device)
    net = getattr(resnet, f"resnet{depth}")(norm_layer=FrozenBatchNorm2d)
    for stage in (net.layer2, net.layer3, net.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    for frozen in (net.conv1, net.layer1):
        frozen.requires_grad_(False)
    return detection.FasterRCNN(
        Conv4(IntermediateLayerGetter(net, {"layer3": "0"})),
        rpn_anchor_generator=AnchorGenerator((ANCHOR_SIZES,), ((0.5, 1.0, 2.0),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], output_size=14, sampling_ratio=2),
        box_head=Conv5Mean(net.layer4),
        box_predictor=FastRCNNPredictor(2048, NUM_CLASSES + 1),
        **{f"rpn_pre_nms_top_n_{mode}": before for mode, (before, _) in C4_CUTS.items()},
        **{f"rpn_post_nms_top_n_{mode}": after for mode, (_, after) in C4_CUTS.items()},
        **size,
    ).to(device)


def _set_size_torchvision(net: Any, hw: Size) -> None:
    net.transform.min_size, net.transform.max_size = (min(hw),), max(hw)


def _floats(net: nn.Module, images: Sequence[Tensor]) -> list[Tensor]:
    device = next(net.parameters()).device
    return [image.to(device).float() / 255 for image in images]


def _detect_torchvision(net: nn.Module, images: Sequence[Tensor]) -> list[Detections]:
    with torch.no_grad():
        answers = net(_floats(net, images))
    return [Detections(a["boxes"], a["scores"], a["labels"] - 1) for a in answers]


def _losses_torchvision(net: nn.Module, images: Sequence[Tensor], targets: Sequence[Target]) -> Losses:
    pixels = _floats(net, images)
    device = pixels[0].device
    return net(pixels, [{"boxes": t.boxes.to(device), "labels": t.labels.to(device) + 1} for t in targets])


def _twin_torchvision(theirs: nn.Module, name: str, hw: Size) -> FasterRCNN:
    depth, pyramid = NETS[name]
    state = theirs.state_dict()
    if pyramid:
        return converted_twin(Foreign("torchvision", state), hw)
    ours = build.faster_rcnn_c4(
        backbone=f"resnet{depth}-1x1",
        num_classes=NUM_CLASSES,
        shorter_side=min(hw),
        longer_side=max(hw),
        anchor_sizes=ANCHOR_SIZES,
        pooling="align",
        half_pixel=False,
        rois_per_image=512,
        train_proposals=C4_CUTS["train"],
        test_proposals=C4_CUTS["test"],
        nms_iou=0.5,
    )
    ours.roi_head.beta = 1 / 9  # as torchvision's, for losses that can be compared
    head = "roi_heads.box_head.conv5."
    rest = from_torchvision({key: value for key, value in state.items() if not key.startswith(head)})
    conv5 = {key.removeprefix(head): value for key, value in state.items() if key.startswith(head)}
    load_exactly(ours, rest | {f"roi_head.embedding.conv5.{k}": v for k, v in conv5.items()}, source="torchvision")
    return ours


_HEAD = ("roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred")
TORCHVISION = Framework(
    _build_torchvision,
    _set_size_torchvision,
    _detect_torchvision,
    _losses_torchvision,
    _twin_torchvision,
    last_norm="bn3",
    layers=("rpn.head.cls_logits", "rpn.head.bbox_pred", *_HEAD),
    background=0,
)
