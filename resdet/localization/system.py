"""Appendix C put together: first stages, their ensemble, the second stage and its ensemble; one box for each class.

Which classes are asked for is the caller's: the true one, or the five that a classifier predicts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from resdet.localization.ensemble import average, check_classes, merge
from resdet.localization.localizer import PerClassLocalizer
from resdet.localization.region_localizer import RegionLocalizer
from resdet.localization.selection import best, join, propose_best
from resdet.localization.settings import LocalizationTest
from resdet.structures import ClassBoxes, Localizations


@torch.no_grad()
def localize(
    images: Sequence[Tensor],
    *,
    classes: Sequence[Tensor],
    first: Sequence[PerClassLocalizer],
    second: Sequence[RegionLocalizer] = (),
    settings: LocalizationTest | None = None,
) -> list[Localizations]:
    """A box for each class asked for, in the frame of what was passed in.

    Args:
        images: uint8 RGB (3, H, W), of any sizes.
        classes: (C,) int64 for each image, C the same in all.
        first: one net or more, in eval mode, for the same classes.
        second: none, or one or more: each scores and moves the proposals of all the first; their answers are averaged.
        settings: of the looks, of the proposals and of the vote.

    Raises:
        InputError: settings or classes that make no sense; nets of different numbers of classes.
    """
    settings = settings or LocalizationTest()
    check_classes([*first, *second])
    seen = _candidates(images, classes, first, settings)
    if not second:
        answers = [merge(first, of_image) for of_image in seen]
    else:
        proposals = [_proposals(of_image, settings) for of_image in seen]
        rescored = zip(*(net.rescore(images, proposals) for net in second), strict=True)
        answers = [average(of_image) for of_image in rescored]
    return best(answers, vote=settings.vote)


@torch.no_grad()
def propose(
    images: Sequence[Tensor],
    *,
    classes: Sequence[Tensor],
    first: Sequence[PerClassLocalizer],
    settings: LocalizationTest | None = None,
) -> list[ClassBoxes]:
    """The proposals that the second stage is given; of training images, for their true class, it learns from them.

    Args:
        images: as for :func:`localize`.
        classes: likewise.
        first: likewise; ``settings.proposals`` of each.
        settings: likewise.
    """
    settings = settings or LocalizationTest()
    check_classes(first)
    return [_proposals(of_image, settings) for of_image in _candidates(images, classes, first, settings)]


def _candidates(
    images: Sequence[Tensor], classes: Sequence[Tensor], nets: Sequence[PerClassLocalizer], settings: LocalizationTest
) -> list[list[ClassBoxes]]:
    """Of each image, what each net says at all scales."""
    of_nets = []
    for net in nets:
        looks = [net.candidates(images, classes, look) for look in net.looks(settings)]
        of_nets.append([join(parts) for parts in zip(*looks, strict=True)])
    return [list(of_image) for of_image in zip(*of_nets, strict=True)]


def _proposals(of_nets: Sequence[ClassBoxes], settings: LocalizationTest) -> ClassBoxes:
    count, nms_iou = settings.proposals, settings.nms_iou
    return join([propose_best(candidates, count=count, nms_iou=nms_iou) for candidates in of_nets])
