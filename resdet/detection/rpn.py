"""The region proposal network (Ren et al. 2015): objectness and a box for every anchor, and the proposals they make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from resdet import boxes as box_ops
from resdet.cpu.folding import conv_relu
from resdet.detection.anchors import Anchors
from resdet.detection.level_nms import survivors
from resdet.detection.losses import SMOOTH_L1_BETA, box_loss, objectness_loss
from resdet.detection.matching import PaddedTargets, Sample, match, sample
from resdet.errors import InputError
from resdet.structures import Proposals

MIN_SIDE = 1e-3
"""Proposals with a side below this many input pixels are dropped: clipping has left nothing of them."""


class RPNHead(nn.Module):
    """3x3 convolutions shared by all levels, one in the paper, then two sibling 1x1 ones.

    Raises:
        InputError: fewer than one.
    """

    def __init__(self, channels: int, anchors_per_cell: int, *, convs: int = 1) -> None:
        super().__init__()
        if convs < 1:
            raise InputError("convolutions of the RPN", found=convs, needed="1 or more")
        self.conv, *deeper = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(convs))
        self.deeper = nn.ModuleList(deeper)
        self.objectness = nn.Conv2d(channels, anchors_per_cell, 1)
        self.deltas = nn.Conv2d(channels, anchors_per_cell * 4, 1)
        for layer in (self.conv, *self.deeper, self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)  # Ren 2015, section 3.1.3
            nn.init.zeros_(layer.bias)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Per level (N, H * W * A) objectness logits and (N, H * W * A, 4) deltas, in the order of the anchors."""
        shared = list(features)
        for conv in (self.conv, *self.deeper):
            shared = [conv_relu(f, conv) for f in shared]
        logits = [self.objectness(s).permute(0, 2, 3, 1).flatten(1) for s in shared]
        deltas = [self.deltas(s).permute(0, 2, 3, 1).reshape(len(s), -1, 4) for s in shared]
        return logits, deltas


class TopK(NamedTuple):
    """How many boxes the RPN keeps."""

    pre_nms: int
    """Best anchors per level that enter NMS."""
    post_nms: int
    """Best proposals per image that leave it."""


class RPN(nn.Module):
    """Proposals and their two losses.

    Args:
        channels: of every feature level.
        anchors: the reference boxes.
        train_topk: counts while training.
        test_topk: counts at test.
        nms_iou: proposals of one level that overlap a better one by more are dropped.
        batch_size_per_image: anchors per image in the loss.
        positive_fraction: their largest positive share.
        beta: of smooth L1.
        convs: 3x3 convolutions of the head.
    """

    def __init__(
        self,
        channels: int,
        anchors: Anchors,
        *,
        train_topk: TopK,
        test_topk: TopK,
        nms_iou: float = 0.7,
        batch_size_per_image: int = 256,
        positive_fraction: float = 0.5,
        beta: float = SMOOTH_L1_BETA,
        convs: int = 1,
    ) -> None:
        super().__init__()
        self.head = RPNHead(channels, anchors.per_cell, convs=convs)
        self.anchors = anchors
        self.train_topk, self.test_topk = train_topk, test_topk
        self.batch_size_per_image, self.positive_fraction = batch_size_per_image, positive_fraction
        self.nms_iou, self.beta = nms_iou, beta

    def forward(
        self, features: Sequence[Tensor], limits: Tensor, targets: PaddedTargets | None = None
    ) -> tuple[Proposals, dict[str, Tensor]]:
        """Proposals of a batch, and the losses when there are targets.

        Args:
            features: per level (N, C, H, W).
            limits: (N, 4) clip limits of each image.
            targets: ground truth, frame: input.
        """
        logits, deltas = self.head(features)
        anchors = self.anchors(features)
        proposals = self._propose(logits, deltas, anchors, limits)
        if targets is None:
            return proposals, {}
        return proposals, self._losses(torch.cat(logits, 1), torch.cat(deltas, 1), torch.cat(anchors), targets)

    @torch.no_grad()
    def _propose(self, logits: list[Tensor], deltas: list[Tensor], anchors: list[Tensor], limits: Tensor) -> Proposals:
        topk = self.train_topk if self.training else self.test_topk
        of_boxes, of_scores = [], []
        for logit, delta, anchor in zip(logits, deltas, anchors, strict=True):
            best, index = logit.float().topk(min(topk.pre_nms, logit.shape[1]), dim=1)
            chosen = delta.gather(1, index[..., None].expand(-1, -1, 4))
            of_boxes.append(box_ops.decode(chosen, anchor[index]))
            of_scores.append(best)
        boxes = box_ops.clip(torch.cat(of_boxes, 1), limits[:, None])
        sides = boxes[..., 2:] - boxes[..., :2]
        scores = torch.cat(of_scores, 1).masked_fill((sides < MIN_SIDE).any(-1), float("-inf"))
        counts = [score.shape[1] for score in of_scores]
        stays = survivors(boxes.split(counts, 1), scores.split(counts, 1), self.nms_iou)
        scores, index = scores.masked_fill(~stays, float("-inf")).topk(min(topk.post_nms, scores.shape[1]), dim=1)
        valid = scores > float("-inf")
        if not valid.is_cuda:  # without a device to wait for, a shorter batch is cheaper than one fixed shape
            longest = max(1, int(valid.sum(1).max()))
            scores, index, valid = scores[:, :longest], index[:, :longest], valid[:, :longest]
        boxes = torch.where(valid[..., None], boxes.gather(1, index[..., None].expand(-1, -1, 4)), 0)
        return Proposals(boxes, scores, valid)

    def _losses(self, logits: Tensor, deltas: Tensor, anchors: Tensor, targets: PaddedTargets) -> dict[str, Tensor]:
        drawn, wanted = draw_anchors(
            anchors, targets, count=self.batch_size_per_image, positive_fraction=self.positive_fraction
        )
        return anchor_losses(logits, deltas, drawn, wanted, beta=self.beta)


@torch.no_grad()
def draw_anchors(
    anchors: Tensor,
    targets: PaddedTargets,
    *,
    positive_iou: float = 0.7,
    background_iou: tuple[float, float] = (0.0, 0.3),
    count: int,
    positive_fraction: float,
) -> tuple[Sample, Tensor]:
    """S of the (M, 4) anchors for each of N images, and the (N, S, 4) deltas wanted of them (Ren 2015, 3.1.2)."""
    # Differs from the paper: anchors that cross the image's border take part, as in every successor.
    matches = match(anchors, targets, positive_iou=positive_iou, background_iou=background_iou, best_for_each=True)
    drawn = sample(matches.kind, count=count, positive_fraction=positive_fraction)
    objects = matches.target.gather(1, drawn.rows)
    matched_gt_boxes = targets.boxes.gather(1, objects[..., None].expand(-1, -1, 4))
    return drawn, box_ops.encode(anchors[drawn.rows], matched_gt_boxes)


def anchor_losses(logits: Tensor, deltas: Tensor, drawn: Sample, wanted: Tensor, *, beta: float) -> dict[str, Tensor]:
    """The two losses of what was drawn from (N, M) logits and (N, M, 4) deltas."""
    chosen = deltas.gather(1, drawn.rows[..., None].expand(-1, -1, 4))
    return {
        "loss_rpn_objectness": objectness_loss(logits.gather(1, drawn.rows), drawn.positive, drawn.used),
        "loss_rpn_box": box_loss(chosen, wanted, drawn.positive, drawn.used, beta=beta),
    }
