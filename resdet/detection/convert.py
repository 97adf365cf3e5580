"""State dicts of other frameworks' detectors, renamed and reordered for ours (parity: ``tests/parity``).

A framework is a list of :data:`Renames` and one function that applies it and repairs what a name cannot say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from resdet.errors import InputError

Renames = Sequence[tuple[str, str]]
"""(pattern of a whole key of theirs, our name), tried in order; ``\\1`` is the pattern's first group."""

LEAF = r"(weight|bias)"
# Older files, torchvision's own downloads among them, lack the ".0" of layers that have since been wrapped.
TORCHVISION: Renames = (
    (r"backbone\.body\.(.+)", r"backbone.\1"),
    (rf"backbone\.fpn\.inner_blocks\.(\d)(?:\.0)?\.{LEAF}", r"neck.lateral.\1.\2"),
    (rf"backbone\.fpn\.layer_blocks\.(\d)(?:\.0)?\.{LEAF}", r"neck.output.\1.\2"),
    (rf"rpn\.head\.conv(?:\.0\.0)?\.{LEAF}", r"rpn.head.conv.\1"),
    (rf"rpn\.head\.cls_logits\.{LEAF}", r"rpn.head.objectness.\1"),
    (rf"rpn\.head\.bbox_pred\.{LEAF}", r"rpn.head.deltas.\1"),
    (rf"roi_heads\.box_head\.(fc6|fc7)\.{LEAF}", r"roi_head.embedding.\1.\2"),
    (rf"roi_heads\.box_predictor\.cls_score\.{LEAF}", r"roi_head.class_logits.\1"),
    (rf"roi_heads\.box_predictor\.bbox_pred\.{LEAF}", r"roi_head.box_deltas.\1"),
)


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of torchvision's ``fasterrcnn_resnet50_fpn``, or of the like on another ResNet, for ``faster_rcnn_fpn``.

    Same numbers as torchvision's need ``half_pixel=False`` and, in training, ``box_beta=1/9``. Its published
    ``COCO_V1`` file was made with a BN epsilon of 0, where nets of both libraries otherwise have 1e-5.

    Args:
        state: ``model.state_dict()``; K + 1 classes, background first.

    Returns:
        State dict of a net with ``num_classes=K``, background last; tensors whose layout agrees are not copied.

    Raises:
        InputError: a key that has no place in our net.
    """
    ours = _rename(state, TORCHVISION, source="torchvision detector")
    for key, value in ours.items():
        if key.startswith("roi_head.class_logits."):
            ours[key] = value.roll(-1, dims=0)  # background from first to last
        elif key.startswith("roi_head.box_deltas."):
            ours[key] = value[4:]  # no box of the background
    return ours


def _rename(state: Mapping[str, Tensor], renames: Renames, *, source: str) -> dict[str, Tensor]:
    names = {key: _name(key, renames) for key in state}
    unknown = [key for key, name in names.items() if name is None]
    if unknown:
        found = f"{len(unknown)} keys without a place in our net: {', '.join(unknown)}"
        raise InputError(source, found=found, needed="a Faster R-CNN with FPN, as its model.state_dict() gives it")
    return {names[key]: value for key, value in state.items()}


def _name(key: str, renames: Renames) -> str | None:
    matches = ((re.fullmatch(theirs, key), ours) for theirs, ours in renames)
    return next((match.expand(ours) for match, ours in matches if match), None)
