"""Faster R-CNN: a residual trunk, a region proposal network and a head, trained jointly (the paper, appendix A)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from resdet.detection.matching import pad_targets
from resdet.detection.postprocess import score_regions, suppress, to_original
from resdet.detection.preprocess import Preprocess, one_size_at_a_time
from resdet.detection.roi_head import Predictions, RoIHead
from resdet.detection.rpn import RPN
from resdet.structures import Detections, ImageBatch, Proposals, ScoredBoxes, Target


class Suppression(NamedTuple):
    """Settings of :func:`resdet.detection.postprocess.suppress` that a net is tested with."""

    score_threshold: float = 0.05
    nms_iou: float = 0.5
    max_per_image: int = 100
    method: Literal["hard", "linear", "gaussian"] = "hard"
    class_agnostic: bool = False
    sigma: float = 0.5


class FasterRCNN(nn.Module):
    """The detector. Its stages are public: ``features``, ``propose``, ``context``, ``embed``, ``classify``.

    Args:
        preprocess: images to a batch.
        backbone: (N, 3, H, W) to a list of maps, finest first.
        neck: those to the maps that the RPN and the head read: an FPN, or :class:`LastLevel`.
        rpn: maps to proposals.
        roi_head: proposals to classes and boxes.
        suppression: settings at test.
    """

    def __init__(
        self,
        preprocess: Preprocess,
        backbone: nn.Module,
        neck: nn.Module,
        rpn: RPN,
        roi_head: RoIHead,
        *,
        suppression: Suppression | None = None,
    ) -> None:
        super().__init__()
        self.preprocess, self.backbone, self.neck = preprocess, backbone, neck
        self.rpn, self.roi_head = rpn, roi_head
        self.suppression = suppression or Suppression()

    @property
    def num_classes(self) -> int:
        """K, without background."""
        return self.roi_head.num_classes

    def features(self, pixels: Tensor) -> list[Tensor]:
        """Feature maps of a (N, 3, H, W) batch, finest first."""
        return self.neck(self.backbone(pixels))

    def propose(self, features: Sequence[Tensor], limits: Tensor) -> Proposals:
        """Regions that may hold objects."""
        return self.rpn(features, limits)[0]

    def context(self, features: Sequence[Tensor], limits: Tensor) -> Tensor:
        """(N, E) vectors of the whole images; E is 0 in a net without global context."""
        return self.roi_head.context(features, limits)

    def embed(self, features: Sequence[Tensor], boxes: Tensor, images: Tensor, context: Tensor) -> Tensor:
        """(R, D + E) vectors of (R, 4) regions, each on the image that the (R,) index names, with its context."""
        return self.roi_head.embed(features, boxes, images, context)

    def classify(self, vectors: Tensor) -> Predictions:
        """Class logits (R, K + 1) and box deltas (R, K or 1, 4) of (R, D + E) vectors."""
        return self.roi_head.classify(vectors)

    def loss(self, images: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """The four losses of a batch.

        Args:
            images: uint8 RGB (3, H, W), of any sizes.
            targets: ground truth of each, frame: sample.
        """
        batch = self.preprocess(images)
        truth = pad_targets(self.preprocess.move_targets(targets, batch))
        features = self.features(batch.pixels)
        limits = batch.limits()
        proposals, losses = self.rpn(features, limits, truth)
        regions = self.roi_head.sample(proposals, truth)
        context = self.context(features, limits)
        predictions = self.classify(self.embed(features, regions.boxes, regions.images, context))
        return losses | self.roi_head.losses(predictions, regions)

    @torch.no_grad()
    def score(self, images: Sequence[Tensor]) -> tuple[list[ScoredBoxes], ImageBatch]:
        """Every region of every image with its probabilities, frame: input, and the batch they were seen in."""
        batch = self.preprocess(images)
        features = self.features(batch.pixels)
        limits = batch.limits()
        proposals = self.propose(features, limits)
        count = proposals.boxes.shape[1]
        index = torch.arange(len(images), device=limits.device).repeat_interleave(count)
        context = self.context(features, limits)
        predictions = self.classify(self.embed(features, proposals.boxes.flatten(0, 1), index, context))
        return score_regions(predictions, proposals, limits), batch

    @torch.no_grad()
    def predict(self, images: Sequence[Tensor]) -> list[Detections]:
        """Detections of uint8 RGB (3, H, W) images of any sizes, in the frame of what was passed in."""
        return one_size_at_a_time(images, self._predict)

    def _predict(self, images: Sequence[Tensor]) -> list[Detections]:
        scored, batch = self.score(images)
        answers = suppress(scored, **self.suppression._asdict())
        return [
            to_original(answer, seen, original)
            for answer, seen, original in zip(answers, batch.input_hw, batch.sample_hw, strict=True)
        ]


class LastLevel(nn.Module):
    """The neck of a C4 net: only the coarsest map of the trunk goes on."""

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """The last of the maps, as a list of one."""
        return features[-1:]
