"""A detector as one graph that can be traced: what ``FasterRCNN.predict`` does.

The layers are the net's own. What is done differently here gives the same numbers and has no shape that hangs on data:
lists are padded, NMS marks the survivors instead of listing them, anchors are made in the graph, and regions are pooled
by torchvision's operators, which every runtime knows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from resdet import boxes as box_ops
from resdet.backbones.fpn import FPN
from resdet.cpu.folding import conv_relu
from resdet.detection import postprocess, rpn
from resdet.detection.context import concatenate, whole_images
from resdet.detection.faster_rcnn import FasterRCNN, Suppression
from resdet.detection.pooling import RoIPooling
from resdet.detection.roi_head import read_predictions

ABSENT = -1e30
"""Below every objectness logit."""
Survivors = Callable[[Tensor, Tensor, float, float], Tensor]
"""(B, P, 4) boxes and (B, P) scores of B groups, an IoU and the score to be above, to the (B, P) mask of what stays."""


class DetectionGraph(nn.Module):
    """A detector with one plain look, of batches that are resized and padded already.

    Args:
        net: in eval mode; its modules are shared.
        suppression: of kind ``"hard"``.
        survivors: non-maximum suppression; :func:`survivors` or an operator that stands for it.
    """

    def __init__(self, net: FasterRCNN, suppression: Suppression, survivors: Survivors) -> None:
        super().__init__()
        self.net, self.suppression, self.survivors = net, suppression, survivors

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detect.

        Args:
            images: (N, 3, H, W) float32 RGB, 0 to 255, resized; H and W multiples of the net's. What is right of and
                below an image does not matter.
            sizes: (N, 2) int64 height and width of each image without its padding.

        Returns:
            Boxes (N, D, 4) xyxy in pixels of ``images``, scores (N, D) and labels (N, D), best first, for at most D
            detections an image. Rows beyond the last detection have a score of 0 and the label -1.
        """
        net, head = self.net, self.net.roi_head
        limits = sizes.flip(1).repeat(1, 2).float()
        features = pyramid(net.neck, net.backbone(self._normalised(images, sizes)))
        regions, real = self._propose(features, limits)
        rows = torch.arange(images.shape[0], device=images.device)[:, None].expand(real.shape).reshape(-1)
        flat = regions.flatten(0, 1)
        vectors = self._embed(features, flat, rows)
        if head.has_context:
            numbers = torch.arange(images.shape[0], device=images.device)
            vectors = concatenate(vectors, self._embed(features, whole_images(limits), numbers), rows)
        scored = read_predictions(net.classify(vectors), flat, limits[rows])
        boxes, probabilities = (part.unflatten(0, real.shape) for part in scored)
        return self._suppress(boxes, probabilities, real)

    def _normalised(self, images: Tensor, sizes: Tensor) -> Tensor:
        """(N, 3, H, W), zero in the padding."""
        pixels = (images - self.net.preprocess.mean) / self.net.preprocess.std
        down = torch.arange(images.shape[2], device=images.device)[:, None] < sizes[:, 0, None, None]
        across = torch.arange(images.shape[3], device=images.device)[None] < sizes[:, 1, None, None]
        return pixels * (down & across)[:, None].to(pixels.dtype)

    def _embed(self, features: Sequence[Tensor], boxes: Tensor, images: Tensor) -> Tensor:
        return self.net.roi_head.embedding(pool(self.net.roi_head.pooling, features, boxes, images))

    def _propose(self, features: Sequence[Tensor], limits: Tensor) -> tuple[Tensor, Tensor]:
        """(N, P, 4) proposals, best first, and (N, P) whether each is one: as ``RPN.propose`` on a GPU."""
        module, topk = self.net.rpn, self.net.rpn.test_topk
        boxes, scores = (
            [_rows(limits, topk.post_nms, 0.0)[..., None].expand(-1, -1, 4)],
            [_rows(limits, topk.post_nms, ABSENT)],
        )
        for feature, anchor in zip(features, grid(module.anchors, features), strict=True):
            logit, delta = _objectness(module.head, feature)
            best, index = torch.cat([logit, _rows(limits, topk.pre_nms, ABSENT)], dim=1).topk(topk.pre_nms, dim=1)
            index = index.clamp(max=anchor.shape[0] - 1)
            chosen = delta.gather(1, index[..., None].expand(-1, -1, 4))
            clipped = box_ops.clip(box_ops.decode(chosen, anchor[index]), limits[:, None])
            whole = ((clipped[..., 2:] - clipped[..., :2]) >= rpn.MIN_SIDE).all(-1)
            best = torch.where(whole, best, ABSENT)
            boxes.append(clipped)
            scores.append(torch.where(self.survivors(clipped, best, module.nms_iou, ABSENT), best, ABSENT))
        best, index = torch.cat(scores, 1).topk(topk.post_nms, dim=1)
        real = best > ABSENT
        return torch.cat(boxes, 1).gather(1, index[..., None].expand(-1, -1, 4)) * real[..., None], real

    def _suppress(self, boxes: Tensor, probabilities: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """:func:`resdet.detection.postprocess.suppress` of (N, P, K or 1, 4) boxes and (N, P, K) probabilities."""
        asked, classes = self.suppression, probabilities.shape[2]
        whole = ((boxes[..., 2:] - boxes[..., :2]) >= postprocess.MIN_SIDE).all(-1)
        scores = torch.where(whole & real[..., None], probabilities, 0.0).transpose(1, 2)
        boxes = boxes.expand(-1, -1, classes, -1).transpose(1, 2)
        groups = (1, 2) if asked.class_agnostic else (0, 1)
        apart = boxes.flatten(*groups), scores.flatten(*groups)
        stays = self.survivors(*apart, asked.nms_iou, asked.score_threshold).reshape(scores.shape)
        scores = torch.where(stays, scores, 0.0).flatten(1)
        best, index = scores.topk(min(asked.max_per_image, scores.shape[1]), dim=1)
        found = best > 0
        labels = torch.where(found, index // real.shape[1], -1)
        picked = boxes.flatten(1, 2).gather(1, index[..., None].expand(-1, -1, 4))
        return picked * found[..., None], best, labels


def _rows(like: Tensor, count: int, value: float) -> Tensor:
    """(N, count) of a value, beside what there is: small images have fewer anchors than are asked for."""
    return like.new_full((like.shape[0], count), value)


def pyramid(neck: nn.Module, maps: Sequence[Tensor]) -> list[Tensor]:
    """What a neck gives. An FPN doubles its maps, which fits padded images; torch 2.6 translates no other size."""
    if not isinstance(neck, FPN):
        return neck(maps)
    merged = [lateral(x) for lateral, x in zip(neck.lateral, maps, strict=True)]
    for finer in reversed(range(len(merged) - 1)):
        coarse = merged[finer + 1][:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2)
        merged[finer] = merged[finer] + coarse.flatten(4, 5).flatten(2, 3)
    levels = [output(x) for output, x in zip(neck.output, merged, strict=True)]
    return [*levels, F.max_pool2d(levels[-1], 1, stride=2)]


def _objectness(head: rpn.RPNHead, feature: Tensor) -> tuple[Tensor, Tensor]:
    """(N, M) logits and (N, M, 4) deltas of a map; the head itself asks for the batch by ``len``, which fixes it."""
    for conv in (head.conv, *head.deeper):
        feature = conv_relu(feature, conv)
    logits, deltas = (layer(feature).permute(0, 2, 3, 1).flatten(1) for layer in (head.objectness, head.deltas))
    return logits, deltas.unflatten(1, (-1, 4))


def grid(anchors: nn.Module, features: Sequence[Tensor]) -> list[Tensor]:
    """The anchors of each map, as :class:`resdet.detection.anchors.Anchors` keeps them."""
    steps = anchors._steps(features)
    levels = []
    for cell, feature, (down, across) in zip(anchors.cells, features, steps, strict=True):
        y = torch.arange(feature.shape[2], device=feature.device)[:, None] * down
        x = torch.arange(feature.shape[3], device=feature.device)[None] * across
        y, x = y + torch.zeros_like(x), x + torch.zeros_like(y)
        shift = torch.stack([x, y, x, y], dim=-1).to(torch.float32)
        levels.append((shift[:, :, None] + cell.to(feature.device)).reshape(-1, 4))
    return levels


def pool(pooling: RoIPooling, features: Sequence[Tensor], boxes: Tensor, images: Tensor) -> Tensor:
    """What a :class:`resdet.detection.pooling.RoIPooling` gives, by torchvision's operators."""
    rois = torch.cat([images[:, None].to(boxes.dtype), boxes], dim=1)
    if len(pooling.strides) == 1:
        return pooling._pool(features[0], rois, pooling.strides[0])
    levels = pooling.levels(boxes)
    pooled = []
    for level, stride in enumerate(pooling.strides):
        pooled.append(pooling._pool(features[level], rois[torch.where(levels == level)[0]], stride))
    by_level = levels * boxes.shape[0] + torch.arange(boxes.shape[0], device=boxes.device)
    return torch.cat(pooled)[
        by_level.argsort().argsort()
    ]  # as many as boxes, which the sum of the levels does not show


def survivors(boxes: Tensor, scores: Tensor, iou_threshold: float, above: float) -> Tensor:
    """Greedy NMS inside each of B groups.

    Args:
        boxes: (B, P, 4) xyxy.
        scores: (B, P).
        iou_threshold: a box that overlaps a better one of its group by more than this is dropped.
        above: boxes whose score is not above it take no part.

    Returns:
        (B, P) bool: whether each box stays.
    """
    # Two boxes beside all others always stay: torchvision 0.21 exports no NMS that leaves fewer.
    beside = boxes.new_tensor([[0, 0, 1, 1], [2, 2, 3, 3]])
    flat = torch.cat([boxes.flatten(0, 1), beside]).double()
    every = torch.cat([scores.flatten(), scores.new_full((2,), math.inf)])
    rows = torch.where(every > above)[0]
    places = rows // boxes.shape[1] * (flat.max() - flat.min() + 1)  # a group never touches another
    kept = torchvision.ops.nms(flat[rows] + places[:, None], every[rows].double(), iou_threshold)
    return torch.zeros_like(every, dtype=torch.bool).index_fill(0, rows[kept], True)[:-2].reshape(scores.shape)
