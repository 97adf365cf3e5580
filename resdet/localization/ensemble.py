"""Ensembles of localizers (appendix C): first stages see the same anchors, second stages the same proposals."""

from __future__ import annotations

from collections.abc import Sequence

from resdet.errors import InputError
from resdet.localization.localizer import PerClassLocalizer
from resdet.localization.selection import join
from resdet.structures import ClassBoxes


def average(answers: Sequence[ClassBoxes]) -> ClassBoxes:
    """Mean scores and boxes of several nets, for the same candidates of one image in the same order."""
    boxes, scores = (sum(parts) / len(answers) for parts in zip(*((a.boxes, a.scores) for a in answers), strict=True))
    return ClassBoxes(answers[0].labels, boxes, scores)


def merge(nets: Sequence[PerClassLocalizer], answers: Sequence[ClassBoxes]) -> ClassBoxes:
    """What several first stages say of one image under the same settings.

    Nets of the same anchors and crop are averaged, anchor by anchor; otherwise their candidates are joined.
    """
    return average(answers) if len({_anchors_of(net) for net in nets}) == 1 else join(answers)


def check_classes(nets: Sequence) -> None:
    """Refuse nets of different numbers of classes.

    Raises:
        InputError: they differ, or there is none.
    """
    if len(counts := {net.num_classes for net in nets}) != 1:
        found = f"nets of {sorted(counts)} classes" if counts else "no net"
        raise InputError("localizers", found=found, needed="one or more, of the same classes")


def _anchors_of(net: PerClassLocalizer) -> tuple:
    anchors = net.rpn.anchors
    return net.crop, anchors.strides, *(tuple(cell.flatten().tolist()) for cell in anchors.cells)
