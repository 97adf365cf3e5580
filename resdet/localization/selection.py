"""From the many boxes of a class to proposals, or to the one that is told."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from resdet import boxes as box_ops
from resdet.errors import InputError
from resdet.inference.voting import vote as vote_boxes
from resdet.structures import ClassBoxes, Detections, Localizations, ScoredBoxes

BEFORE_NMS = 5
"""So many candidates for each proposal wanted enter NMS, the best ones: about the shares of an RPN."""


def join(parts: Sequence[ClassBoxes]) -> ClassBoxes:
    """All boxes of the same classes of one image: of several scales, of several nets."""
    return ClassBoxes(
        parts[0].labels, torch.cat([p.boxes for p in parts], dim=1), torch.cat([p.scores for p in parts], dim=1)
    )


def best(candidates: Sequence[ClassBoxes], *, vote: float | None = None) -> list[Localizations]:
    """The box of highest score of each class.

    Args:
        candidates: of N images.
        vote: least IoU with it of the boxes whose score-weighted mean takes its place
            (:mod:`resdet.inference.voting`); None for no vote. The score stays.
    """
    if any(c.scores.shape[1] == 0 for c in candidates):
        raise InputError("candidates of a localizer", found="no box", needed="one or more for each class")
    chosen = []
    for boxes, scores in ((c.boxes, c.scores) for c in candidates):
        score, index = scores.max(1)
        place = torch.arange(len(index), device=index.device)
        chosen.append(Detections(boxes[place, index], score, place))  # labels are columns here
    if vote is not None:
        voters = [ScoredBoxes(c.boxes.transpose(0, 1), c.scores.t()) for c in candidates]
        chosen = vote_boxes(chosen, voters, iou=vote)
    return [Localizations(c.labels, d.boxes, d.scores) for c, d in zip(candidates, chosen, strict=True)]


def propose_best(candidates: ClassBoxes, *, count: int, nms_iou: float) -> ClassBoxes:
    """The proposals of each class: what survives NMS, best first; then, to fill the number, the best of the rest.

    Differs from the paper: it takes the 200 of highest score and tells of no NMS; here those that overlap a better one
    by more than 0.7, the RPN's limit, come last.

    Args:
        candidates: of one image.
        count: P at most; always so many where there are as many candidates, so no row is padding.
        nms_iou: of the NMS.
    """
    scores, index = candidates.scores.topk(min(BEFORE_NMS * count, candidates.scores.shape[1]), dim=1)
    boxes = _pick(candidates.boxes, index)
    groups = torch.arange(len(boxes), device=boxes.device)[:, None].expand_as(scores)
    kept = box_ops.batched_nms(boxes.flatten(0, 1), scores.flatten(), groups.flatten(), nms_iou)
    suppressed = torch.ones(scores.numel(), dtype=torch.bool, device=scores.device)
    suppressed[kept] = False
    order = suppressed.view_as(scores).int().argsort(dim=1, stable=True)[:, :count]
    return ClassBoxes(candidates.labels, _pick(boxes, order), scores.gather(1, order))


def _pick(boxes: Tensor, index: Tensor) -> Tensor:
    return boxes.gather(1, index[..., None].expand(-1, -1, 4))
