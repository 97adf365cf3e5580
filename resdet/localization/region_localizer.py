"""The second stage of appendix C: an R-CNN on regions that are cut out of the image and warped to the net's crop.

RoI-centric: a step learns from regions of many images, each looked at alone, and not from all regions of one or two.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from resdet import boxes as box_ops
from resdet.classification.views import PIXELS_AT_ONCE
from resdet.detection.losses import box_loss, objectness_loss
from resdet.detection.preprocess import Preprocess
from resdet.detection.rpn import MIN_SIDE
from resdet.localization.selection import best
from resdet.structures import ClassBoxes, Localizations, RegionTarget


class RegionLocalizer(nn.Module):
    """A score and a better box for a region, given its class.

    Args:
        preprocess: regions are warped to its side, and normalised as it does.
        net: (R, 3, side, side) to (R, D).
        width: D.
        num_classes: K.
        beta: of smooth L1.
    """

    def __init__(
        self, preprocess: Preprocess, net: nn.Module, width: int, *, num_classes: int, beta: float = 1.0
    ) -> None:
        super().__init__()
        self.preprocess, self.net = preprocess, net
        self.scores, self.deltas = nn.Linear(width, num_classes), nn.Linear(width, num_classes * 4)
        for layer, std in ((self.scores, 0.01), (self.deltas, 0.001)):  # Fast R-CNN, section 3.1
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
        self.num_classes, self.beta = num_classes, beta

    @property
    def side(self) -> int:
        """Of the warped regions."""
        return self.preprocess.test_side

    def warp(self, image: Tensor, boxes: Tensor) -> Tensor:
        """Normalised (R, 3, side, side) regions of a uint8 RGB (3, H, W) image, cut at (R, 4) boxes of its frame."""
        return self._cut(self._normalised(image), boxes)

    def forward(self, regions: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """(R, 3, side, side) warped regions and the (R,) class of each to (R,) logits and (R, 4) deltas."""
        vectors = self.net(regions)
        logits = _row_of(self.scores, self.num_classes, classes, vectors)[:, 0]
        return logits, _row_of(self.deltas, self.num_classes, classes, vectors)

    def loss(self, images: Sequence[Tensor], targets: Sequence[RegionTarget]) -> dict[str, Tensor]:
        """The two losses of the regions of all images together.

        Args:
            images: uint8 RGB (3, H, W), of any sizes.
            targets: regions of each, frame: sample; see :func:`resdet.datasets.region_sampling.draw_regions`.
        """
        device = self.preprocess.mean.device
        boxes, matched_gt_boxes, positive = (
            torch.cat([getattr(t, name) for t in targets]).to(device, non_blocking=True)
            for name in ("boxes", "matched_gt_boxes", "positive")
        )
        classes = torch.cat([t.label.expand(len(t.boxes)) for t in targets]).to(device, non_blocking=True)
        regions = torch.cat([self.warp(image, t.boxes) for image, t in zip(images, targets, strict=True)])
        logits, deltas = self(regions, classes)
        wanted, used = box_ops.encode(boxes, matched_gt_boxes, box_ops.HEAD), torch.ones_like(positive)
        return {
            "loss_region_score": objectness_loss(logits, positive, used),
            "loss_region_box": box_loss(deltas, wanted, positive, used, beta=self.beta),
        }

    @torch.no_grad()
    def rescore(self, images: Sequence[Tensor], proposals: Sequence[ClassBoxes]) -> list[ClassBoxes]:
        """The proposals with new scores, moved; as many, in the same order. Call it in eval mode.

        Args:
            images: uint8 RGB (3, H, W), of any sizes.
            proposals: of each image, in its frame. They go through the net in parts of a bounded size.
        """
        return [self._rescore(image, given) for image, given in zip(images, proposals, strict=True)]

    def predict(
        self, images: Sequence[Tensor], proposals: Sequence[ClassBoxes], *, vote: float | None = None
    ) -> list[Localizations]:
        """The best of the rescored proposals of each class; with ``vote``, placed by its neighbours too."""
        return best(self.rescore(images, proposals), vote=vote)

    def _normalised(self, image: Tensor) -> Tensor:
        """(1, 3, H, W) float."""
        mean, std = self.preprocess.mean, self.preprocess.std
        return ((image.to(mean.device, non_blocking=True).float() - mean) / std)[None]

    def _cut(self, pixels: Tensor, boxes: Tensor) -> Tensor:
        rois = F.pad(boxes.to(pixels), (1, 0))
        # Without a number of samples RoIAlign takes one for each pixel of the image: the mean over a bin's area is what
        # keeps a region that shrinks from aliasing, and a region that grows is interpolated.
        warped = torchvision.ops.roi_align(pixels, rois, self.side, sampling_ratio=0, aligned=True)
        return warped.contiguous(memory_format=torch.channels_last)

    def _rescore(self, image: Tensor, given: ClassBoxes) -> ClassBoxes:
        device = self.preprocess.mean.device
        boxes = given.boxes.to(device).flatten(0, 1)
        classes = given.labels.to(device).repeat_interleave(given.boxes.shape[1])
        size, pixels = max(1, PIXELS_AT_ONCE // self.side**2), self._normalised(image)
        parts = [
            self(self._cut(pixels, some), of_some)
            for some, of_some in zip(boxes.split(size), classes.split(size), strict=True)
        ]
        logits, deltas = (torch.cat(column) for column in zip(*parts, strict=True))
        limits = torch.tensor(image.shape[:0:-1] * 2, dtype=boxes.dtype).to(device, non_blocking=True)
        moved = box_ops.clip(box_ops.decode(deltas, boxes, box_ops.HEAD), limits)
        empty = ((moved[:, 2:] - moved[:, :2]) < MIN_SIDE).any(1)
        scores = logits.float().sigmoid().masked_fill(empty, 0)
        return ClassBoxes(given.labels.to(device), moved.view_as(given.boxes), scores.view(given.scores.shape))


def _row_of(layer: nn.Linear, num_classes: int, classes: Tensor, vectors: Tensor) -> Tensor:
    """The outputs of one class for each region: (R,) and (R, D) to (R, outputs of one class)."""
    weight = F.embedding(classes, layer.weight.view(num_classes, -1)).unflatten(1, (-1, vectors.shape[1]))
    bias = F.embedding(classes, layer.bias.view(num_classes, -1))
    return (weight @ vectors[:, :, None])[..., 0] + bias
