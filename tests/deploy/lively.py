"""Small detectors with lively weights, and pictures that they find something in."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from resdet.backbones.registry import BACKBONES
from resdet.backbones.vgg import VGG
from resdet.cpu.folding import fold_batchnorm
from resdet.detection.build import faster_rcnn_c4, faster_rcnn_fpn, faster_rcnn_vgg16
from resdet.detection.faster_rcnn import FasterRCNN

KINDS = ("c4", "c4_align", "fpn", "fpn_context", "vgg")
GROUPS = ((8, 8), (8, 8), (16, 16, 16), (32, 32, 32), (32, 32, 32))
META = {"classes": ("cat", "dog", "owl"), "category_ids": (2, 5, 9)}


def lively_net(kind: str, **settings: object) -> FasterRCNN:
    """A net whose weights make scores of every size, without ties: activations of order one, and noise in the heads."""
    torch.manual_seed(7)
    common = {"num_classes": 3, "shorter_side": 96, "longer_side": 160, "test_proposals": (150, 40), **settings}
    if kind.startswith("fpn"):
        sizes = (16, 24, 32, 48, 64)
        net = faster_rcnn_fpn(
            backbone="resnet18-half",
            anchor_sizes=sizes,
            pyramid_channels=16,
            head_width=32,
            context=kind == "fpn_context",
            **common,
        )
    elif kind.startswith("c4"):
        pooling = "align" if kind == "c4_align" else "pool"
        net = faster_rcnn_c4(backbone="resnet18-half", anchor_sizes=(16, 32, 64), pooling=pooling, **common)
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(BACKBONES, "_entries", dict(BACKBONES._entries))
            narrow = partial(VGG, GROUPS, hidden=32)
            BACKBONES.register("narrow", lambda n: narrow(num_classes=n), channels=(8,) * 4, strides=(2, 4, 8, 16))
            net = faster_rcnn_vgg16(backbone="narrow", anchor_sizes=(16, 32, 64), **common)
    with torch.no_grad():
        _calibrate(net, 100)
    return fold_batchnorm(net.eval())


def _calibrate(net: FasterRCNN, seed: int) -> None:
    """Scale the last layers so that logits and deltas are of the size that trained nets have."""
    torch.manual_seed(seed)
    image = pictures(1)[0]
    for layer, spread in (
        (net.rpn.head.objectness, 3.0),
        (net.rpn.head.deltas, 0.3),
        (net.roi_head.class_logits, 2.0),
        (net.roi_head.box_deltas, 1.0),
    ):
        nn.init.normal_(layer.weight)
        seen: list[Tensor] = []
        hook = layer.register_forward_hook(lambda _, __, out, seen=seen: seen.append(out))
        net.eval().score([image])
        hook.remove()
        values = torch.cat([out.flatten() for out in seen])
        layer.weight.mul_(spread / values.std().clamp(min=1e-6))
        layer.bias.zero_()


def pictures(count: int, hw: tuple[int, int] = (90, 150)) -> list[Tensor]:
    """(3, H, W) uint8 pictures with rectangles and noise."""
    draw = torch.Generator().manual_seed(3)
    made = []
    for _ in range(count):
        image = torch.randint(60, 160, (3, *hw), generator=draw)
        for _ in range(6):
            y, x = (int(torch.randint(0, side - 40, (), generator=draw)) for side in hw)
            h, w = (int(side) for side in torch.randint(16, 40, (2,), generator=draw))
            colour = torch.randint(0, 256, (3, 1, 1), generator=draw)
            image[:, y : y + h, x : x + w] = colour + torch.randint(0, 20, (3, h, w), generator=draw)
        made.append(image.clamp(0, 255).to(torch.uint8))
    return made
