"""The nouns of the package, and the conventions that every file keeps.

* Images are uint8 RGB ``(3, H, W)`` until :class:`resdet.detection.preprocess.Preprocess`, float after it.
* Sizes are ``(height, width)`` and named ``*_hw``.
* Boxes are float32 ``(n, 4)`` xyxy in continuous absolute pixels, ``0 <= x1 < x2 <= W``: a box that covers one whole
  pixel is one unit wide. There is no "+1" anywhere.
* Every box lives in a named frame: *original* (the file), *sample* (after augmentation), *input* (resized, not padded).
* Labels are int64 in ``[0, K)``. Background is only the last logit, and ``num_classes`` never counts it.
* Letters: N images, G ground-truth boxes, A anchors per cell, M anchors per image, P proposals, R RoIs, K classes.

They are named tuples because mmengine's ``cast_data`` and torch's ``pin_memory`` move those to the device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Target(NamedTuple):
    """Ground truth of one image. An image without objects has G = 0."""

    boxes: Tensor
    """(G, 4) float32 xyxy, frame: sample."""
    labels: Tensor
    """(G,) int64 in [0, K)."""
    ignore: Tensor
    """(G,) bool: crowd or difficult; matched to nothing and never background."""
    image_id: int
    """The id of the annotation file (COCO), or the row of the image list (VOC)."""
    original_hw: tuple[int, int]
    """Size of the file as displayed (after EXIF rotation)."""


class ImageBatch(NamedTuple):
    """What the network sees: images resized, normalised and padded to one size."""

    pixels: Tensor
    """(N, 3, H, W) float, zero where padded (right and below)."""
    input_hw: list[tuple[int, int]]
    """(N) size of each image before padding."""
    sample_hw: list[tuple[int, int]]
    """(N) size of each image before resizing."""

    def limits(self) -> Tensor:
        """(N, 4) float32 ``(W, H, W, H)`` of each image before padding: the clip limits of its boxes."""
        rows = [(w, h, w, h) for h, w in self.input_hw]
        return torch.tensor(rows, dtype=torch.float32).to(self.pixels.device, non_blocking=True)


class Proposals(NamedTuple):
    """Regions of a batch, best first, padded to one count: the valid ones of each image come first. Frame: input."""

    boxes: Tensor
    """(N, P, 4) xyxy; rows that are not valid are zero."""
    scores: Tensor
    """(N, P) objectness logits."""
    valid: Tensor
    """(N, P) bool."""


class ScoredBoxes(NamedTuple):
    """Every RoI of one image after the head, before any threshold. Frame: input."""

    boxes: Tensor
    """(R, K, 4) xyxy, or (R, 1, 4) when box regression is class-agnostic; clipped to the image."""
    probabilities: Tensor
    """(R, K), background dropped."""


class Detections(NamedTuple):
    """The answer for one image, best first. Frame: original."""

    boxes: Tensor
    """(D, 4) xyxy."""
    scores: Tensor
    """(D,) in [0, 1]."""
    labels: Tensor
    """(D,) int64 in [0, K)."""


class Localizations(NamedTuple):
    """A box for each class asked for, of one image. Frame: original."""

    labels: Tensor
    """(C,) int64 in [0, K), in the order asked for."""
    boxes: Tensor
    """(C, 4) xyxy."""
    scores: Tensor
    """(C,) in [0, 1]: that the box is right, given the class."""


class ClassBoxes(NamedTuple):
    """Many boxes for each class asked for, of one image: candidates and proposals of a localizer. Frame: original."""

    labels: Tensor
    """(C,) int64 in [0, K), in the order asked for."""
    boxes: Tensor
    """(C, P, 4) xyxy."""
    scores: Tensor
    """(C, P) in [0, 1]."""


class RegionTarget(NamedTuple):
    """The regions of one image that a second-stage localizer learns from. Frame: sample."""

    boxes: Tensor
    """(P, 4) xyxy."""
    matched_gt_boxes: Tensor
    """(P, 4) the box of the object that each stands for; of use where positive."""
    label: Tensor
    """() int64 in [0, K): the class of the image, that all regions are asked about."""
    positive: Tensor
    """(P,) bool."""
