"""The detector proper (Fast R-CNN): what is in each region, and a better box for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resdet import boxes as box_ops
from resdet.cpu.folding import conv_relu
from resdet.detection.context import concatenate, image_vectors, no_vectors
from resdet.detection.losses import SMOOTH_L1_BETA, box_loss, class_loss
from resdet.detection.matching import NEITHER, PaddedTargets, match, sample
from resdet.errors import InputError
from resdet.structures import Proposals, ScoredBoxes


class Embedding(nn.Module):
    """Regions of (R, C, side, side) to (R, width) vectors."""

    width: int


class TwoLayerEmbedding(Embedding):
    """FPN's head: two fully connected layers with ReLU over the flattened region."""

    def __init__(self, channels: int, side: int, *, width: int = 1024) -> None:
        super().__init__()
        self.fc6 = nn.Linear(channels * side * side, width)
        self.fc7 = nn.Linear(width, width)
        self.width = width
        for layer in (self.fc6, self.fc7):
            nn.init.kaiming_uniform_(layer.weight, a=1)  # "Xavier" of Caffe2, as FPN's authors trained it
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        """(R, C, side, side) to (R, width)."""
        return F.relu(self.fc7(F.relu(self.fc6(pooled.flatten(1)))))


class ConvEmbedding(Embedding):
    """The head of torchvision's second version: 3x3 convolutions of one width, then one fully connected layer.

    Raises:
        InputError: fewer than one convolution.
    """

    def __init__(self, channels: int, side: int, *, width: int = 1024, convs: int, batchnorm: bool) -> None:
        super().__init__()
        if convs < 1:
            raise InputError("convolutions of the box head", found=convs, needed="1 or more; 0 for two linear layers")
        layers = [nn.Conv2d(channels, channels, 3, padding=1, bias=not batchnorm) for _ in range(convs)]
        self.convs = nn.ModuleList(
            nn.Sequential(conv, *([nn.BatchNorm2d(channels)] if batchnorm else [])) for conv in layers
        )
        self.fc6 = nn.Linear(channels * side * side, width)
        self.width = width
        for conv in layers:
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
        nn.init.kaiming_uniform_(self.fc6.weight, a=1)
        nn.init.zeros_(self.fc6.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        """(R, C, side, side) to (R, width)."""
        for layers in self.convs:
            pooled = conv_relu(pooled, *layers.children())
        return F.relu(self.fc6(pooled.flatten(1)))


class ClassifierEmbedding(Embedding):
    """VGG's head: fc6 and fc7 of the classifier, each with ReLU and, in training, dropout (Ren 2015)."""

    def __init__(self, fc6: nn.Linear, fc7: nn.Linear, *, dropout: float) -> None:
        super().__init__()
        self.fc6, self.fc7, self.dropout = fc6, fc7, nn.Dropout(dropout)
        self.width = fc7.out_features

    def forward(self, pooled: Tensor) -> Tensor:
        """(R, C, side, side) to (R, width)."""
        x = self.dropout(F.relu(self.fc6(pooled.flatten(1))))
        return self.dropout(F.relu(self.fc7(x)))


class Conv5Embedding(Embedding):
    """The paper's head: conv5_x on each region, then global average pooling, "in place of VGG's fc layers"."""

    def __init__(self, conv5: nn.Module, width: int) -> None:
        super().__init__()
        self.conv5 = conv5
        self.width = width

    def forward(self, pooled: Tensor) -> Tensor:
        """(R, C, side, side) to (R, width)."""
        return self.conv5(pooled).mean(dim=(2, 3))


class Predictions(NamedTuple):
    """Output of the two sibling layers."""

    logits: Tensor
    """(R, K + 1), background last."""
    deltas: Tensor
    """(R, K, 4), or (R, 1, 4) when class-agnostic."""


def read_predictions(predictions: Predictions, regions: Tensor, limits: Tensor) -> ScoredBoxes:
    """Boxes and probabilities that the head gives to (R, 4) regions; ``limits`` are the (R, 4) clip limits of each."""
    boxes = box_ops.decode(predictions.deltas, regions[:, None], box_ops.HEAD)
    probabilities = predictions.logits.float().softmax(-1)[:, :-1]
    return ScoredBoxes(box_ops.clip(boxes, limits[:, None]), probabilities)


class RoISample(NamedTuple):
    """The regions of a training step, S for each image, flat."""

    boxes: Tensor
    """(N * S, 4) frame: input."""
    images: Tensor
    """(N * S,) image of each."""
    labels: Tensor
    """(N * S,) in [0, K]; K is background."""
    matched_gt_boxes: Tensor
    """(N * S, 4) box of the object each positive stands for."""
    positive: Tensor
    """(N * S,) bool."""
    used: Tensor
    """(N * S,) bool; the rest only fill the shape and carry no loss."""


class RoIHead(nn.Module):
    """Pool, embed, classify and regress regions.

    Args:
        pooling: regions to (R, C, side, side).
        embedding: those to (R, D) vectors.
        num_classes: K, without background.
        class_agnostic: one box per region instead of one per class.
        context: classify each region beside its whole image (:mod:`resdet.detection.context`).
        batch_size_per_image: regions per image in the loss.
        positive_fraction: their largest positive share.
        background_iou: regions with an IoU in [low, high) are background.
        beta: of smooth L1.
    """

    def __init__(
        self,
        pooling: nn.Module,
        embedding: Embedding,
        *,
        num_classes: int,
        class_agnostic: bool = False,
        context: bool = False,
        batch_size_per_image: int = 512,
        positive_fraction: float = 0.25,
        background_iou: tuple[float, float] = (0.0, 0.5),
        beta: float = SMOOTH_L1_BETA,
    ) -> None:
        super().__init__()
        self.pooling, self.embedding = pooling, embedding
        width = embedding.width * (2 if context else 1)
        self.class_logits = nn.Linear(width, num_classes + 1)
        self.box_deltas = nn.Linear(width, 4 * (1 if class_agnostic else num_classes))
        for layer, std in ((self.class_logits, 0.01), (self.box_deltas, 0.001)):  # Fast R-CNN, section 3.1
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
        self.num_classes, self.class_agnostic, self.has_context = num_classes, class_agnostic, context
        self.batch_size_per_image, self.positive_fraction = batch_size_per_image, positive_fraction
        self.background_iou, self.beta = background_iou, beta

    def context(self, features: Sequence[Tensor], limits: Tensor) -> Tensor:
        """(N, E) vectors of whole images; E is 0 in a net without context."""
        return image_vectors(self._embed, features, limits) if self.has_context else no_vectors(features)

    def embed(self, features: Sequence[Tensor], boxes: Tensor, images: Tensor, context: Tensor) -> Tensor:
        """(R, D + E) vectors of the (R, 4) regions, each on the image that the (R,) index names."""
        return concatenate(self._embed(features, boxes, images), context, images)

    def classify(self, vectors: Tensor) -> Predictions:
        """Class logits and box deltas of (R, D + E) vectors."""
        return Predictions(self.class_logits(vectors), self.box_deltas(vectors).unflatten(1, (-1, 4)))

    @torch.no_grad()
    def sample(self, proposals: Proposals, targets: PaddedTargets) -> RoISample:
        """Regions to train on: drawn from the proposals and the ground-truth boxes themselves."""
        candidates = torch.cat([proposals.boxes, targets.boxes], dim=1)
        matches = match(candidates, targets, positive_iou=0.5, background_iou=self.background_iou)
        legal = torch.cat([proposals.valid, targets.real], dim=1)
        kind = torch.where(legal, matches.kind, NEITHER)
        drawn = sample(kind, count=self.batch_size_per_image, positive_fraction=self.positive_fraction)
        objects = matches.target.gather(1, drawn.rows)
        labels = torch.where(drawn.positive, targets.labels.gather(1, objects), self.num_classes)
        pick = drawn.rows[..., None].expand(-1, -1, 4)
        images = torch.arange(len(labels), device=labels.device)[:, None].expand_as(labels)
        return RoISample(
            boxes=candidates.gather(1, pick).flatten(0, 1),
            images=images.flatten(),
            labels=labels.flatten(),
            matched_gt_boxes=targets.boxes.gather(1, objects[..., None].expand_as(pick)).flatten(0, 1),
            positive=drawn.positive.flatten(),
            used=drawn.used.flatten(),
        )

    def losses(self, predictions: Predictions, regions: RoISample) -> dict[str, Tensor]:
        """Classification and box losses of the sampled regions."""
        column = torch.zeros_like(regions.labels) if self.class_agnostic else regions.labels % self.num_classes
        deltas = predictions.deltas[torch.arange(len(column), device=column.device), column]
        wanted = box_ops.encode(regions.boxes, regions.matched_gt_boxes, box_ops.HEAD)
        return {
            "loss_class": class_loss(predictions.logits, regions.labels, regions.used),
            "loss_box": box_loss(deltas, wanted, regions.positive, regions.used, beta=self.beta),
        }

    def _embed(self, features: Sequence[Tensor], boxes: Tensor, images: Tensor) -> Tensor:
        return self.embedding(self.pooling(features, boxes, images))
