"""Appendix B put together: several nets, scales, rounds and mirrors, and one list of detections.

The walk: a *view* of each net at each size → proposals of all → the head on all of them, its answers averaged over nets
→ refinement → the same for mirrored and resized images, and for the tiles of large ones → suppression → voting → the
frame of the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from resdet.detection.faster_rcnn import FasterRCNN, Suppression
from resdet.detection.postprocess import suppress, to_original
from resdet.detection.preprocess import one_size_at_a_time
from resdet.errors import InputError
from resdet.inference.clock import Clock
from resdet.inference.fusion import fuse
from resdet.inference.look import Look, looks
from resdet.inference.refinement import refine
from resdet.inference.settings import TestSettings
from resdet.inference.tiles import look_at_tiles, to_frame
from resdet.inference.view import Views
from resdet.inference.voting import vote
from resdet.structures import Detections, ImageBatch, ScoredBoxes

FAINT = 0.01
"""Least score of a detection of one look that may still be fused with those of others, or come from a tile."""


class Predictor(nn.Module):
    """Detectors with settings for test; ``predict`` is that of a net.

    Args:
        nets: one or more, for the same classes. The first one's suppression settings and input frame are used.
        settings: see :class:`TestSettings`; its ``ensemble`` is ``nets[1:]`` here.
        timed: wait for the GPU at the ends of each step, so that the clock's seconds are those of its own work.

    Attributes:
        clock: seconds of each step, of all calls so far.
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
        self.clock, self.images = Clock(wait=timed), 0
        asked = {name: getattr(settings, name) for name in ("score_threshold", "nms_iou", "max_per_image")}
        self.suppression = nets[0].suppression._replace(
            **{name: value for name, value in asked.items() if value is not None},
            method=settings.nms,
            class_agnostic=settings.class_agnostic_nms,
            sigma=settings.sigma,
        )

    @torch.no_grad()
    def predict(self, images: Sequence[Tensor], views: Views | None = None) -> list[Detections]:
        """Detections of uint8 RGB (3, H, W) images, in the frame of what was passed in.

        Args:
            images: of any sizes.
            views: those of other predictors of the same images, which then have one size; new ones by default. Time
                that others spent on a view counts here too.
        """
        if views is not None:
            return self._predict(views)
        return one_size_at_a_time(images, lambda alike: self._predict(Views(alike, wait=self.clock.wait)))

    def _predict(self, views: Views) -> list[Detections]:
        asked, least = self.settings, min(FAINT, self.suppression.score_threshold)
        # First, while nothing of the whole images is kept.
        of_tiles = look_at_tiles(views, self.look, side=asked.tiles, overlap=asked.tile_overlap, least=least)
        scored, common = self.look(views)
        for look in of_tiles:
            scored.append([to_frame(of_image, common.sample_hw[0], common.input_hw[0]) for of_image in look])
        if self.settings.merge == "nms":
            detections = self.suppress([stack(of_image) for of_image in zip(*scored, strict=True)])
        else:
            detections = self.fuse(scored)
        self.images += len(views.images)
        frames = zip(detections, common.input_hw, common.sample_hw, strict=True)
        return [to_original(answer, seen_hw, original_hw) for answer, seen_hw, original_hw in frames]

    def look(self, views: Views) -> tuple[list[list[ScoredBoxes]], ImageBatch]:
        """What each look at the images gives of each, in the frame of the first look; and that frame."""
        seen = looks(cast("list[FasterRCNN]", list(self.nets)), self.settings, views)
        common = seen[0].frame
        scored = [look.in_frame(common, self.score(look)) for look in seen]
        for view in {view for look in seen for of_net in (look.own, *look.pyramids) for view in of_net}:
            self.clock.seconds += view.clock.seconds
        return scored, common

    def score(self, look: Look) -> list[ScoredBoxes]:
        """What the nets say of their proposals, and of the boxes of all rounds of refinement."""
        with self.clock.step("union"):
            regions = look.propose()
        with self.clock.step("regions"):
            first = look.classify(regions)
        if not self.settings.refine:
            return first
        with self.clock.step("refinement"):
            return refine(first, look.classify, rounds=self.settings.refine)

    def suppress(self, scored: Sequence[ScoredBoxes]) -> list[Detections]:
        """NMS, then voting among what NMS saw."""
        return self._suppress(scored, self.suppression)

    def fuse(self, looks: Sequence[Sequence[ScoredBoxes]]) -> list[Detections]:
        """Detections of each look, fused.

        What one look sees faintly may be sure once it is fused; so each keeps all, and the threshold comes last.
        """
        asked = self.suppression
        faint = asked._replace(score_threshold=min(FAINT, asked.score_threshold))
        answers = [self._suppress(scored, faint) for scored in looks]
        limits = {name: getattr(asked, name) for name in ("score_threshold", "max_per_image", "class_agnostic")}
        with self.clock.step("fusion"):
            return fuse(answers, iou=self.settings.wbf_iou, **limits)

    def seconds_per_image(self) -> dict[str, float]:
        """What each step took so far, the dearest first."""
        return {step: seconds / max(1, self.images) for step, seconds in self.clock.seconds.most_common()}

    def _suppress(self, scored: Sequence[ScoredBoxes], settings: Suppression) -> list[Detections]:
        with self.clock.step("suppression"):
            kept = suppress(scored, **settings._asdict())
        if (iou := self.settings.vote) is None:
            return kept
        with self.clock.step("voting"):
            return vote(kept, scored, iou=iou)


def stack(answers: Sequence[ScoredBoxes]) -> ScoredBoxes:
    """All boxes of one image."""
    return ScoredBoxes(*map(torch.cat, zip(*answers, strict=True)))
