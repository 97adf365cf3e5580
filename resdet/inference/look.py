"""What several nets see of a batch of images at one size, mirrored or not, and what they say of it together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from torch import Tensor

from resdet.detection.faster_rcnn import FasterRCNN
from resdet.detection.roi_head import read_predictions
from resdet.inference.ensemble import average, join
from resdet.inference.multiscale import embed_maxout, merge_proposals
from resdet.inference.settings import TestSettings
from resdet.inference.view import View, Views, flatten, mirror
from resdet.structures import ImageBatch, ScoredBoxes


class Look:
    """One look of all nets. Its regions and boxes are in the frame of the first net's view.

    Args:
        nets: one or more.
        settings: their scales, and how those are used.
        views: where the nets' views are taken from.
        size: shorter side in pixels; None for each net's own.
        mirrored: whether the images are.
    """

    def __init__(
        self, nets: Sequence[FasterRCNN], settings: TestSettings, views: Views, size: int | None, *, mirrored: bool
    ) -> None:
        self.settings, self.mirrored = settings, mirrored
        self.own: list[View] = []
        """Of each net, at its own size or at ``size``."""
        self.pyramids: list[list[View]] = []
        """Of each net, at the scales of multi-scale testing; without them its own view alone."""
        for net in nets:
            side = size or net.preprocess.test_side
            scales = settings.scales or (side,)
            # The largest comes first, while nothing else is kept: what a net needs while it runs is several times what
            # it leaves, so a pyramid needs no more memory than its largest level.
            at = {s: views.of(net, s, mirrored=mirrored) for s in sorted({side, *scales}, reverse=True)}
            self.own.append(at[side])
            self.pyramids.append([at[s] for s in scales])
        self.frame = self.own[0].frame
        self.contexts = [view.context for view in self.own]
        """(N, E) vectors of the whole images under each net."""
        sources = self.pyramids if settings.scale_proposals == "all" else [[view] for view in self.own]
        self.proposals = [[view.propose(self.frame) for view in views] for views in sources]
        """Of each net at each of its scales that propose, and for each image: (P, 4) boxes, (P,) logits."""

    def propose(self) -> list[Tensor]:
        """(P, 4) proposals of all nets and scales for each image."""
        return join([self._merge(view, found) for view, found in zip(self.own, self.proposals, strict=True)])

    def classify(self, regions: Sequence[Tensor]) -> list[ScoredBoxes]:
        """The mean of what the nets say of (P, 4) regions of each image."""
        boxes, images = flatten(regions)
        limits = self.frame.limits().to(boxes.device)[images]
        answers = []
        for pyramid, context in zip(self.pyramids, self.contexts, strict=True):
            if self.settings.scales:
                side = self.settings.region_side
                vectors = embed_maxout(pyramid, boxes, images, context, self.frame, region_side=side)
            else:
                vectors = pyramid[0].embed(boxes, images, context, self.frame)
            scored = read_predictions(pyramid[0].net.classify(vectors), boxes, limits)
            parts = (part.split([len(r) for r in regions]) for part in scored)
            answers.append([ScoredBoxes(*of_image) for of_image in zip(*parts, strict=True)])
        return average(answers)

    def in_frame(self, common: ImageBatch, scored: Sequence[ScoredBoxes]) -> list[ScoredBoxes]:
        """What this look gave, in the frame of another one that is not mirrored."""
        if self.frame is common and not self.mirrored:
            return list(scored)
        answers = []
        for answer, old, new in zip(scored, self.frame.limits(), common.limits(), strict=True):
            boxes = mirror(answer.boxes, old[0]) if self.mirrored else answer.boxes
            answers.append(answer._replace(boxes=boxes * (new / old).to(boxes)))
        return answers

    def _merge(self, own: View, found: list[list[tuple[Tensor, Tensor]]]) -> list[Tensor]:
        """One net's proposals: those of its scale as they are, those of several after another NMS."""
        if len(found) == 1:
            return [boxes for boxes, _ in found[0]]
        rpn = own.net.rpn
        return [
            merge_proposals(of_image, nms_iou=rpn.nms_iou, count=rpn.test_topk.post_nms)
            for of_image in zip(*found, strict=True)
        ]


def looks(nets: Sequence[FasterRCNN], settings: TestSettings, views: Views) -> list[Look]:
    """The images as they are at each size, then mirrored."""
    mirrors = (False, True) if settings.flip else (False,)
    shown = product(mirrors, (None, *settings.sizes))
    return [Look(nets, settings, views, size, mirrored=mirrored) for mirrored, size in shown]
