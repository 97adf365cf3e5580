"""State dicts of other frameworks' detectors and backbones for our nets (parity: ``tests/parity``).

A kind is recognised by one of its keys. Its converter renames every key, repairs what a name cannot say, and tells the
builder's arguments that make our net compute the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from resdet.convert.backbone import from_caffe, from_caffe2, from_resnet
from resdet.convert.detectron2 import from_detectron2
from resdet.convert.mmdetection import from_mmdetection
from resdet.convert.renaming import (
    EPSILON,
    LEAF,
    NORM,
    SETTINGS,
    TRUNK,
    Converted,
    Foreign,
    Renames,
    backbone_name,
    fold_batchnorm,
    rename,
    size_arguments,
    split_backbone,
    summary,
)
from resdet.errors import InputError
from resdet.labels import COCO_CATEGORY_IDS

# Older files, torchvision's own downloads among them, lack the ".0" of layers that have since been wrapped.
TORCHVISION: Renames = (
    (rf"backbone\.body\.{TRUNK}", r"backbone.\1"),
    (rf"backbone\.fpn\.inner_blocks\.(\d)(?:\.0)?\.{LEAF}", r"neck.lateral.\1.\2"),
    (rf"backbone\.fpn\.layer_blocks\.(\d)(?:\.0)?\.{LEAF}", r"neck.output.\1.\2"),
    (rf"backbone\.fpn\.inner_blocks\.(\d)\.1\.{NORM}", r"neck.lateral.\1.1.\2"),
    (rf"backbone\.fpn\.layer_blocks\.(\d)\.1\.{NORM}", r"neck.output.\1.1.\2"),
    (rf"rpn\.head\.conv(?:\.0\.0)?\.{LEAF}", r"rpn.head.conv.\1"),
    *((rf"rpn\.head\.conv\.{n}\.0\.{LEAF}", rf"rpn.head.deeper.{n - 1}.\1") for n in range(1, 10)),
    (rf"rpn\.head\.cls_logits\.{LEAF}", r"rpn.head.objectness.\1"),
    (rf"rpn\.head\.bbox_pred\.{LEAF}", r"rpn.head.deltas.\1"),
    (rf"roi_heads\.box_head\.(fc6|fc7)\.{LEAF}", r"roi_head.embedding.\1.\2"),
    (rf"roi_heads\.box_head\.(\d+)\.([01])\.{NORM}", r"roi_head.embedding.convs.\1.\2.\3"),
    (rf"roi_heads\.box_head\.\d+\.{LEAF}", r"roi_head.embedding.fc6.\1"),
    (rf"roi_heads\.box_predictor\.cls_score\.{LEAF}", r"roi_head.class_logits.\1"),
    (rf"roi_heads\.box_predictor\.bbox_pred\.{LEAF}", r"roi_head.box_deltas.\1"),
)


EPSILON_ZERO = ("258fb6c6",)
"""Files of torchvision that were trained, and are run by it, with a BN epsilon of 0: ``COCO_V1`` on ResNet-50."""
COCO_OUTPUTS = 91
"""Of torchvision's COCO files: background and category ids 1 to 90, ten of which do not exist."""


def convert(foreign: Foreign) -> Converted:
    """A foreign file in our terms.

    Raises:
        InputError: of an unknown kind; a key has no place; a convention is unknown or has no like here.
    """
    for telling, converter in KINDS.items():
        if any(re.match(telling, key) for key in foreign.state):
            for name in ("style", "channels", "stride_on", "config"):
                if getattr(foreign, name) and name not in TAKEN[converter]:
                    switch = f"--{name.replace('_', '-')}"
                    raise InputError(foreign.source, found=f"{switch} for a file of one kind", needed=f"no {switch}")
            return converter(foreign)
    found = f"no known kind of file: {summary(list(foreign.state))}"
    raise InputError(foreign.source, found=found, needed=KNOWN)


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of torchvision's ``fasterrcnn_resnet50_fpn``, its ``_v2``, or the like on another ResNet.

    They are for ``faster_rcnn_fpn``, the second version's with ``rpn_convs=2, head_convs=4, batchnorm=True``.

    Same numbers as torchvision's need ``half_pixel=False`` and, in training, ``box_beta=1/9``. Its published
    ``COCO_V1`` file was made with a BN epsilon of 0, where nets of both libraries otherwise have 1e-5
    (:func:`from_torchvision_file` sees to both).

    Args:
        state: ``model.state_dict()``; K + 1 classes, background first.

    Returns:
        State dict of a net with ``num_classes=K``, background last; tensors whose layout agrees are not copied.

    Raises:
        InputError: a key that has no place in our net.
    """
    return _background_last(Foreign("torchvision detector", state))


def from_torchvision_file(foreign: Foreign) -> Converted:
    """A file of torchvision's Faster R-CNN with FPN.

    Raises:
        InputError: a key that has no place in our net.
    """
    state = _background_last(foreign)
    eps = 0.0 if foreign.digest in EPSILON_ZERO else EPSILON
    eps = eps if foreign.batchnorm_eps is None else foreign.batchnorm_eps
    notes = [
        "RGB pixels and stride on the 3x3 convolution, as ours",
        f"BN epsilon {eps:g}" + ("" if eps == EPSILON else f": folded into its scales, for ours of {EPSILON:g}"),
        "anchors 32, 64, 128, 256, 512, rounded, their strides inferred; RoIAlign without half-pixel centres, 2x2",
        "background first: moved last, its box dropped",
    ]
    shapes = size_arguments(state, pyramid=True, source=foreign.source)
    if shapes["num_classes"] == COCO_OUTPUTS - 1 != foreign.class_count:
        state = _without_holes(state)
        shapes["num_classes"] = len(COCO_CATEGORY_IDS)
        notes.append(f"{COCO_OUTPUTS} outputs, one for each category id: the rows of the 80 that exist are taken")
    parts = _parts(state)
    notes.append(
        f"{parts['rpn_convs']} convolutions in the RPN, {parts['head_convs']} in the box head, BN "
        f"{'in pyramid and box head' if parts['batchnorm'] else 'in the backbone alone'}, which "
        f"{'is constant' if parts['frozen_batchnorm'] else 'learns'} in training"
    )
    arguments = {
        **SETTINGS,
        **shapes,
        "backbone": backbone_name(split_backbone(state), stride_on="3x3", source=foreign.source),
        "anchor_sizes": [32.0, 64.0, 128.0, 256.0, 512.0],
        "rounded_anchors": True,
        "inferred_strides": True,
        "half_pixel": False,
        "align_samples": 2,
        **parts,
        "box_beta": 1 / 9,
        "train_proposals": (2000, 2000),
        "test_proposals": (1000, 1000),
    }
    kind = "torchvision Faster R-CNN FPN"
    return Converted(kind, "faster_rcnn_fpn", arguments, fold_batchnorm(state, eps), notes)


def _parts(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The builder's arguments that tell torchvision's two versions apart."""

    def number(layer: str) -> int:
        return sum(bool(re.fullmatch(rf"{layer}\.weight", key)) for key in state)

    return {
        "frozen_batchnorm": "backbone.bn1.num_batches_tracked" not in state,  # its frozen layers count no batches
        "rpn_convs": 1 + number(r"rpn\.head\.deeper\.\d"),
        "head_convs": number(r"roi_head\.embedding\.convs\.\d+\.0"),
        "batchnorm": "neck.lateral.0.1.weight" in state,
    }


def _background_last(foreign: Foreign) -> dict[str, Tensor]:
    ours = rename(foreign, TORCHVISION, kind="torchvision's Faster R-CNN FPN")
    if "neck.lateral.0.1.weight" in ours:  # two layers where there was one
        ours = {re.sub(r"^(neck\.(?:lateral|output)\.\d)(?=\.weight$)", r"\1.0", k): v for k, v in ours.items()}
    for key, value in ours.items():
        if key.startswith("roi_head.class_logits."):
            ours[key] = value.roll(-1, dims=0)  # background from first to last
        elif key.startswith("roi_head.box_deltas."):
            ours[key] = value[4:]  # no box of the background
    return ours


def _without_holes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Class rows of the category ids that exist; ours are ids less one, background last."""
    rows = torch.tensor([number - 1 for number in COCO_CATEGORY_IDS])
    with_background = torch.cat([rows, torch.tensor([COCO_OUTPUTS - 1])])
    ours = dict(state)
    for leaf in ("weight", "bias"):
        logits, deltas = f"roi_head.class_logits.{leaf}", f"roi_head.box_deltas.{leaf}"
        ours[logits] = state[logits][with_background]
        ours[deltas] = state[deltas].unflatten(0, (-1, 4))[rows].flatten(0, 1)
    return ours


KINDS: dict[str, Callable[[Foreign], Converted]] = {
    r"backbone\.body\.": from_torchvision_file,
    r"proposal_generator\.": from_detectron2,
    r"(rpn_head|roi_head\.bbox_head)\.": from_mmdetection,
    r"res\d_0_branch2a_w": from_caffe2,
    r"res\d[a-z]\d*_branch2a\.": from_caffe,
    r"layer1\.0\.conv1\.weight": from_resnet,
}
"""Pattern of how some key of a kind begins, and its converter."""
_PIXELS = ("style", "channels", "stride_on")
TAKEN: dict[Callable[[Foreign], Converted], tuple[str, ...]] = {
    from_torchvision_file: (),
    **dict.fromkeys((from_detectron2, from_mmdetection), (*_PIXELS, "config")),
    **dict.fromkeys((from_caffe2, from_caffe, from_resnet), _PIXELS),
}
"""What the user may tell of a kind."""
KNOWN = (
    "Faster R-CNN of torchvision (FPN), detectron2 or mmdetection (FPN, C4), or a ResNet in the names of Caffe, "
    "Caffe2 or torchvision"
)
