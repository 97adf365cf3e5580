"""Regions that a second-stage localizer learns from (appendix C): R-CNN's draw from the proposals of an image."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from resdet import boxes as box_ops
from resdet.errors import InputError
from resdet.structures import RegionTarget, Target


def draw_regions(
    proposals: Tensor,
    target: Target,
    *,
    count: int,
    generator: np.random.Generator,
    positive_fraction: float = 0.25,
    positive_iou: float = 0.5,
) -> RegionTarget:
    """Regions of one image: positives up to their share, the rest background, at random.

    The class of the image is that of its first object that is not ignored; all regions are asked about it, and objects
    of other classes are background. Where background is too rare, further positives take its places: an object that
    fills the image leaves little else.

    Differs from the paper: it names neither the share of positives, which is R-CNN's 25% here, nor the objects' own
    boxes, which are candidates too as in Fast R-CNN.

    Args:
        proposals: (P, 4) for the class of the image, frame: sample. Empty boxes are left out.
        target: of the image, in the same frame.
        count: regions wanted; fewer come where there are fewer candidates.
        generator: of the draw.
        positive_fraction: wanted share of positives; R-CNN has 32 of 128. Where it is no whole number of regions, it is
            kept on average.
        positive_iou: of a positive with an object of the class, at least; all others are background.

    Raises:
        InputError: no object tells the class.
    """
    real = torch.where(~target.ignore)[0]
    if not len(real):
        raise InputError(
            f"target of image {target.image_id}", found="no object", needed="one or more that are not ignored"
        )
    label = target.labels[real[0]]
    objects = target.boxes[real[target.labels[real] == label]]
    proposals = proposals.to(objects)
    candidates = torch.cat([proposals[box_ops.area(proposals) > 0], objects])
    overlap, nearest = box_ops.iou(candidates, objects).max(1)
    order = torch.from_numpy(generator.permutation(len(candidates)))
    positives, negatives = order[overlap[order] >= positive_iou], order[overlap[order] < positive_iou]
    share = int(count * positive_fraction + generator.random())  # of one region an image, each fourth is positive
    wanted = min(share, len(positives))
    wanted = max(wanted, min(count - len(negatives), len(positives)))
    rows = torch.cat([positives[:wanted], negatives[: count - wanted]])
    return RegionTarget(candidates[rows], objects[nearest[rows]], label, overlap[rows] >= positive_iou)
