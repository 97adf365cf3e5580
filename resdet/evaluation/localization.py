"""The localization error of ILSVRC (Russakovsky et al. 2015, section 4.2), the paper's Tables 13 and 14.

An answer is up to five pairs of class and box, best first. It is right when one of the pairs has the image's class and
a box whose IoU with *any* ground-truth box of that class is at least 0.5. With the class given instead, one box is the
whole answer: the "ground-truth class" rows of Table 13.

The kit adds one to widths because its corners are inclusive pixel numbers; here boxes are continuous
(:mod:`resdet.datasets.imagenet_loc`), which makes every overlap the same number.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch import distributed as dist

from resdet.boxes import iou
from resdet.errors import InputError
from resdet.structures import Localizations, Target

IOU = 0.5
"""Least overlap of a right box; exactly this much counts."""


class LocalizationErrors:
    """Localization and classification error of a whole data set, as counts that processes merge by addition.

    No image is gathered or padded away: each process must be given every image of its share exactly once.

    Args:
        ks: numbers of pairs that may be looked at, rising.
        device: where the counts are kept; the boxes' device spares a copy per image.
    """

    def __init__(self, ks: Sequence[int] = (1, 5), *, device: torch.device | str = "cpu") -> None:
        self.ks = tuple(ks)
        # images, then those with a box for the true class and the right ones; those with pairs and for each k those
        # whose class is right, then those whose class and box are
        self.counts = torch.zeros(4 + 2 * len(self.ks), dtype=torch.int64, device=device)

    def update(self, truth_box: Tensor | None, predicted: Localizations | None, target: Target) -> None:
        """Count one image.

        Args:
            truth_box: (4,) xyxy, frame: original; the box for the ground-truth class. None: not asked for.
            predicted: pairs of class and box, best first; fewer than k are legal, more are not looked at. None: not
                asked for.
            target: the image's class and its boxes, frame: original. Ignored boxes are not counted.

        Raises:
            InputError: the image has no box that counts, or boxes of several classes.
        """
        label, boxes = _truth(target)
        device = boxes.device
        row = torch.zeros_like(self.counts, device=device)
        row[0] = 1
        if truth_box is not None:
            row[1], row[2] = 1, _located(truth_box.to(device)[None], boxes)[0]
        if predicted is not None:
            named = predicted.labels.to(device) == label
            both = named & _located(predicted.boxes.to(device), boxes)
            row[3] = 1
            row[4:] = torch.stack([right[:k].any() for right in (named, both) for k in self.ks])
        self.counts += row.to(self.counts.device)

    def total(self) -> Tensor:
        """(4 + 2 len(ks),) counts of all processes; every process must call it."""
        counts = self.counts.clone()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts)
        return counts

    def summary(self) -> dict[str, float]:
        """Errors as fractions over all processes, and ``images``; every process must call it.

        ``loc/gt_class_error`` where boxes for the ground-truth class were given; ``loc/top1_error``,
        ``loc/top5_error``, ``cls/top1_error`` and ``cls/top5_error`` where pairs were.

        Raises:
            InputError: no image was counted, or only some images had the box or the pairs.
        """
        images, asked, right, answered, *correct = self.total().tolist()
        if not images:
            raise InputError("localization metric", found="no images", needed="at least one image to evaluate")
        for kind, number in (("a box for the ground-truth class", asked), ("predicted classes", answered)):
            if number not in (0, images):
                raise InputError("localization metric", found=f"{kind} for {number} of {images} images", needed="all")
        figures: dict[str, float] = {}
        if answered:
            named, located = correct[: len(self.ks)], correct[len(self.ks) :]
            figures |= {
                f"loc/top{k}_error": (images - count) / images for k, count in zip(self.ks, located, strict=True)
            }
        if asked:
            figures["loc/gt_class_error"] = (images - right) / images
        if answered:
            figures |= {f"cls/top{k}_error": (images - count) / images for k, count in zip(self.ks, named, strict=True)}
        return {**figures, "images": images}


def _truth(target: Target) -> tuple[Tensor, Tensor]:
    """() class of the image and its (G, 4) boxes."""
    labels, boxes = target.labels[~target.ignore], target.boxes[~target.ignore]
    found = "no box that counts" if not len(labels) else None
    if found is None and (labels != labels[0]).any():
        found = f"boxes of the classes {labels.unique().tolist()}"
    if found:
        raise InputError(f"image {target.image_id}", found=found, needed="one or more boxes, all of the image's class")
    return labels[0], boxes


def _located(boxes: Tensor, truth: Tensor) -> Tensor:
    """(C, 4) and (G, 4) to (C,) bool: whether the box overlaps any true one enough; NaN never does."""
    return (iou(boxes.double(), truth.double()) >= IOU).any(dim=1)
