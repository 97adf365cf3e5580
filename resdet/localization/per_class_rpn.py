"""The per-class RPN (appendix C): objectness and a box of every anchor, for each class by weights of its own.

Two sibling 1x1 convolutions with K times the outputs of an RPN. An image asks for one class in training and for five at
test, so only their rows of the weights are taken out and applied; nothing but the weights and their gradient has K in
its size.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resdet.detection.anchors import Anchors
from resdet.detection.losses import SMOOTH_L1_BETA
from resdet.detection.matching import PaddedTargets
from resdet.detection.rpn import anchor_losses, draw_anchors


class PerClassRPN(nn.Module):
    """K binary logistic outputs and K boxes for each anchor of one feature map.

    Channel ``k * A + a`` of ``objectness`` belongs to class k and anchor a; of ``deltas``, the four from
    ``4 * (k * A + a)`` on.

    Args:
        channels: D of the map.
        num_classes: K.
        anchors: the reference boxes, of one level.
        batch_size_per_image: anchors per image in the loss; the paper's 8.
        positive_fraction: their largest positive share; the paper's 1:1.
        positive_iou: an anchor of at least this IoU is positive, as is the best one of each object.
        background_iou: an anchor with an IoU in [low, high) is background.
        beta: of smooth L1.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        anchors: Anchors,
        *,
        batch_size_per_image: int = 8,
        positive_fraction: float = 0.5,
        positive_iou: float = 0.7,
        background_iou: tuple[float, float] = (0.0, 0.3),
        beta: float = SMOOTH_L1_BETA,
    ) -> None:
        super().__init__()
        self.objectness = nn.Conv2d(channels, num_classes * anchors.per_cell, 1)
        self.deltas = nn.Conv2d(channels, num_classes * anchors.per_cell * 4, 1)
        for layer in (self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)  # as the RPN's (Ren 2015, section 3.1.3)
            nn.init.zeros_(cast(Tensor, layer.bias))
        self.anchors, self.num_classes = anchors, num_classes
        self.batch_size_per_image, self.positive_fraction = batch_size_per_image, positive_fraction
        self.positive_iou, self.background_iou, self.beta = positive_iou, background_iou, beta

    def forward(self, feature: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """What the anchors say of the classes asked for.

        Args:
            feature: (N, D, H, W).
            classes: (N, C) int64 in [0, K).

        Returns:
            (N, C, M) logits and (N, C, M, 4) deltas; M = H * W * A in the order of the anchors.
        """
        cells = feature.permute(0, 2, 3, 1).flatten(1, 2)
        logits = _rows_of(self.objectness, self.num_classes, classes, cells)
        deltas = _rows_of(self.deltas, self.num_classes, classes, cells)
        return logits.flatten(2), deltas.unflatten(3, (-1, 4)).flatten(2, 3)

    def loss(self, feature: Tensor, targets: PaddedTargets) -> dict[str, Tensor]:
        """Both losses, of the outputs of each image's own class alone.

        The class of an image is that of its first object that is not ignored; objects of other classes are background.
        An image without such an object tells no class, and gives no loss.

        Differs from the paper: it has positives and background 1:1; where positives are fewer, as with the one or two
        anchors of most objects, background takes their places as in Ren's RPN.

        Args:
            feature: (N, D, H, W).
            targets: ground truth, frame: input.
        """
        count = targets.real.shape[1]
        order = torch.where(targets.real, torch.arange(count, device=targets.real.device), count)
        first = order.amin(1, keepdim=True)
        classes = targets.labels.gather(1, first.clamp(max=count - 1))
        logits, deltas = self(feature, classes)
        drawn, wanted = draw_anchors(
            self.anchors([feature])[0],
            targets._replace(real=targets.real & (targets.labels == classes)),
            positive_iou=self.positive_iou,
            background_iou=self.background_iou,
            count=self.batch_size_per_image,
            positive_fraction=self.positive_fraction,
        )
        drawn = drawn._replace(used=drawn.used & (first < count))
        return anchor_losses(logits[:, 0], deltas[:, 0], drawn, wanted, beta=self.beta)


def _rows_of(layer: nn.Conv2d, num_classes: int, classes: Tensor, cells: Tensor) -> Tensor:
    """The outputs of the classes alone: (N, C) and (N, cells, D) to (N, C, cells, outputs of one class)."""
    # As a table of embeddings, one row a class: the gradient is made once, of the weight's size, whatever N and C are.
    weight = F.embedding(classes, layer.weight.view(num_classes, -1)).unflatten(2, (-1, cells.shape[2]))
    bias = F.embedding(classes, cast(Tensor, layer.bias).view(num_classes, -1))
    answers = cells @ weight.flatten(1, 2).transpose(1, 2)  # (N, cells, C * outputs)
    return answers.unflatten(2, weight.shape[1:3]).transpose(1, 2) + bias[:, :, None]
