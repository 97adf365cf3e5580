"""Appendix B put together: several nets, scales, rounds and mirrors, and one list of detections.

The walk: a *view* of each net at each size → proposals of all → the head on all of them, its answers averaged over nets
→ refinement → the same for mirrored and resized images → suppression → voting → the frame of the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from resdet.detection.faster_rcnn import FasterRCNN
from resdet.detection.postprocess import suppress, to_original
from resdet.detection.roi_head import read_predictions
from resdet.errors import InputError
from resdet.inference.ensemble import average, join
from resdet.inference.fusion import fuse
from resdet.inference.multiscale import embed_maxout, merge_proposals
from resdet.inference.refinement import refine
from resdet.inference.settings import TestSettings
from resdet.inference.stages import Stages
from resdet.inference.view import View, flatten, mirror
from resdet.inference.voting import vote
from resdet.structures import Detections, ImageBatch, ScoredBoxes

FAINT = 0.01
"""Least score of a detection of one look that may still be fused with those of others."""


class Look(NamedTuple):
    """One way to show the images to the nets."""

    mirrored: bool
    size: int | None
    """Shorter side; None for each net's own."""


class Predictor(nn.Module):
    """Detectors with settings for test; ``predict`` is that of a net.

    Args:
        nets: one or more, for the same classes. The first one's suppression settings and input frame are used.
        settings: see :class:`TestSettings`; its ``ensemble`` is ``nets[1:]`` here.
        timed: wait for the GPU at the ends of each stage, so that ``seconds`` are those of its own work.

    Attributes:
        seconds: per stage, of all calls so far.
        images: number of them.

    Raises:
        InputError: settings that make no sense, alone or together; nets of different numbers of classes.
    """

    def __init__(
        self, nets: Sequence[FasterRCNN], settings: TestSettings | None = None, *, timed: bool = False
    ) -> None:
        super().__init__()
        settings = settings or TestSettings()
        counts = {net.num_classes for net in nets}
        if len(counts) != 1:
            raise InputError("ensemble", found=f"nets of {sorted(counts)} classes", needed="the same classes in all")
        if (own := nets[0].preprocess.test_side) in settings.sizes:
            raise InputError("test.sizes", found=f"{own}, the net's own", needed="further shorter sides")
        self.nets, self.settings = nn.ModuleList(nets), settings
        self.timed, self.images = timed, 0
        self.seconds: dict[str, float] = {}
        asked = {name: getattr(settings, name) for name in ("score_threshold", "nms_iou", "max_per_image")}
        self.suppression = nets[0].suppression._replace(
            **{name: value for name, value in asked.items() if value is not None},
            method=settings.nms,
            class_agnostic=settings.class_agnostic_nms,
            sigma=settings.sigma,
        )

    @torch.no_grad()
    def predict(self, images: Sequence[Tensor], stages: Stages | None = None) -> list[Detections]:
        """Detections of uint8 RGB (3, H, W) images, in the frame of what was passed in.

        Args:
            images: of any sizes.
            stages: what other predictors have computed of the same images; a new memory by default.
        """
        stages = Stages(wait=self.timed and next(self.parameters()).is_cuda) if stages is None else stages
        answers = self._merge(images, stages)
        for stage, seconds in stages.bill().items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        self.images += len(images)
        return answers

    def seconds_per_image(self) -> dict[str, float]:
        """What each stage took so far, the dearest first."""
        costs = sorted(self.seconds.items(), key=lambda item: -item[1])
        return {stage: seconds / max(1, self.images) for stage, seconds in costs}

    def _merge(self, images: Sequence[Tensor], stages: Stages) -> list[Detections]:
        mirrors = (False, True) if self.settings.flip else (False,)
        looks = [Look(*look) for look in product(mirrors, (None, *self.settings.sizes))]
        common = self._views(images, looks[0], stages)[0][0].frame
        scored = [self._in_frame(look, common, *self._score_look(images, look, stages)) for look in looks]
        if self.settings.merge == "nms":
            detections = self._suppress([_stack(of_image) for of_image in zip(*scored, strict=True)], stages)
        else:
            asked = self.suppression
            # What one look sees faintly may be sure once it is fused; so each keeps all, and the threshold comes last.
            views = [self._suppress(of_look, stages, threshold=min(FAINT, asked.score_threshold)) for of_look in scored]
            limits = {name: getattr(asked, name) for name in ("score_threshold", "max_per_image", "class_agnostic")}
            detections = stages.once("fusion", object(), lambda: fuse(views, iou=self.settings.wbf_iou, **limits))
        frames = zip(detections, common.input_hw, common.sample_hw, strict=True)
        return [to_original(answer, seen, original) for answer, seen, original in frames]

    def _suppress(
        self, scored: list[ScoredBoxes], stages: Stages, *, threshold: float | None = None
    ) -> list[Detections]:
        asked = self.suppression if threshold is None else self.suppression._replace(score_threshold=threshold)
        kept = stages.once("suppression", object(), lambda: suppress(scored, **asked._asdict()))
        if (iou := self.settings.vote) is None:
            return kept
        return stages.once("voting", object(), lambda: vote(kept, scored, iou=iou))

    def _score_look(self, images: Sequence[Tensor], look: Look, stages: Stages) -> tuple[list[ScoredBoxes], ImageBatch]:
        """All predictions of all rounds, and their frame."""
        views = self._views(images, look, stages)
        common = views[0][0].frame
        settings = self.settings
        key = (look, tuple(map(id, self.nets)), settings.scales, settings.region_side, settings.scale_proposals)

        def score(regions: list[Tensor]) -> list[ScoredBoxes]:
            return average([self._score_net(own, pyramid, regions, common, stages) for own, pyramid in views])

        def propose() -> list[Tensor]:
            return join([self._propose(own, pyramid, common, stages) for own, pyramid in views])

        regions = stages.once("union", key, propose)
        first = stages.once("regions", key, lambda: score(regions))
        if not settings.refine:
            return first, common
        rounds = settings.refine
        return stages.once("refinement", (key, rounds), lambda: refine(first, score, rounds=rounds)), common

    def _views(self, images: Sequence[Tensor], look: Look, stages: Stages) -> list[tuple[View, list[View]]]:
        """Each net's view at its own size, and its pyramid (that view alone where no scales are asked for).

        The largest comes first, while nothing else is kept: what a net needs while it runs is several times what it
        leaves, so the pyramid needs no more memory than its largest level. The maps of further nets, mirrors and sizes
        come on top of that.
        """
        shown = [image.flip(-1) for image in images] if look.mirrored else images
        views = []
        for net in cast("list[FasterRCNN]", list(self.nets)):
            own = look.size or net.preprocess.test_side
            scales = self.settings.scales or (own,)
            at = {
                size: stages.once("backbone", (id(net), size, look.mirrored), partial(View, net, shown, size))
                for size in sorted({own, *scales}, reverse=True)
            }
            views.append((at[own], [at[size] for size in scales]))
        return views

    def _propose(self, own: View, pyramid: list[View], common: ImageBatch, stages: Stages) -> list[Tensor]:
        views = pyramid if self.settings.scale_proposals == "all" else [own]
        found = [view.in_common(stages.once("proposals", id(view), view.propose), common) for view in views]
        if len(views) == 1:
            return [boxes for boxes, _ in found[0]]
        rpn = own.net.rpn
        return [
            merge_proposals(of_image, nms_iou=rpn.nms_iou, count=rpn.test_cut.after)
            for of_image in zip(*found, strict=True)
        ]

    def _score_net(
        self, own: View, pyramid: list[View], regions: list[Tensor], common: ImageBatch, stages: Stages
    ) -> list[ScoredBoxes]:
        context = stages.once("context", id(own), own.context)
        boxes, images = flatten(regions)
        if self.settings.scales:
            side = self.settings.region_side
            vectors = embed_maxout(pyramid, boxes, images, context, common, region_side=side)
        else:
            vectors = own.embed(boxes, images, context, common)
        limits = common.limits().to(boxes.device)[images]
        answer = read_predictions(own.net.classify(vectors), boxes, limits)
        counts = [len(r) for r in regions]
        return [ScoredBoxes(*parts) for parts in zip(*(part.split(counts) for part in answer), strict=True)]

    def _in_frame(
        self, look: Look, common: ImageBatch, scored: list[ScoredBoxes], frame: ImageBatch
    ) -> list[ScoredBoxes]:
        """What a look gave, in the common frame."""
        if not look.mirrored and look.size is None:
            return scored
        answers = []
        for answer, old, new in zip(scored, frame.limits(), common.limits(), strict=True):
            boxes = mirror(answer.boxes, old[0]) if look.mirrored else answer.boxes
            answers.append(answer._replace(boxes=boxes * (new / old).to(boxes)))
        return answers


def _stack(answers: Sequence[ScoredBoxes]) -> ScoredBoxes:
    return ScoredBoxes(*map(torch.cat, zip(*answers, strict=True)))
