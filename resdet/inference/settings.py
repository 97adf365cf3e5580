"""How a trained detector looks at an image: section ``test`` of a config. The defaults are one plain look."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from resdet.errors import InputError
from resdet.settings import Count, CountOrNone, Fraction, Positive, Settings

PAPER_SCALES = (200, 400, 600, 800, 1000)
"""Shorter sides of the paper's pyramid."""
IoU = Annotated[float, Field(gt=0, le=1)]


class TestSettings(Settings):
    """Section ``test``: appendix B of the paper, and what users of other frameworks know.

    ``tools/eval.py``, ``tools/infer.py`` and ``Detector`` follow it; validation during training looks once.
    Names are the same in configs (``test = dict(refine=1)``), on the command line (``--refine 1``) and in Python
    (``Detector(..., test={"refine": 1})``). All of them may be combined.
    """

    section: ClassVar[str] = "test"
    refine: CountOrNone = 0
    """Rounds of box refinement; the paper's is 1."""
    vote: IoU | None = None
    """Box voting: least IoU of the boxes that vote; the paper's is 0.5."""
    scales: tuple[Count, ...] = ()
    """Multi-scale testing: shorter sides of the pyramid, rising; the paper's are (200, 400, 600, 800, 1000)."""
    region_side: Annotated[float, Field(ge=1)] = 224.0
    """Each region is seen at the two adjacent scales at which its side is nearest to this many pixels."""
    scale_proposals: Literal["one", "all"] = "one"
    """Proposals from the net's own size alone (the paper), or from all scales."""
    ensemble: tuple[str, ...] = ()
    """Checkpoints of further nets, of any depth and kind, for the same classes. Each is tested with its own size and
    proposals, unless an override (``model.shorter_side=...``) says them of all."""
    flip: bool = False
    """Detect on the mirrored image too."""
    sizes: tuple[Count, ...] = ()
    """Detect at further shorter sides too; with ``scales``, they give further proposals."""
    tiles: Annotated[int, Field(ge=64)] | None = None
    """Look at large images in tiles of this side in pixels of the file too, each as an image of its own; None: only at
    the whole. An image no larger than a tile is looked at as without."""
    tile_overlap: Annotated[float, Field(ge=0, lt=0.9)] = 0.2
    """Share of its side that a tile has in common with the next one; objects smaller than that are whole in a tile."""
    merge: Literal["nms", "wbf"] = "nms"
    """How ``flip``, ``sizes`` and ``tiles`` are merged: one suppression over all boxes, or weighted box fusion of the
    answers, in which all tiles together are one."""
    wbf_iou: Fraction = 0.55
    """Overlap beyond which boxes are fused."""
    nms: Literal["hard", "linear", "gaussian"] = "hard"
    """Suppression, or Soft-NMS with one of its two decays."""
    sigma: Positive = 0.5
    """Of the Gaussian."""
    class_agnostic_nms: bool = False
    """Let boxes of different classes suppress each other."""
    score_threshold: Fraction | None = None
    """Least score of a detection; None leaves the model's, as with the next two."""
    nms_iou: Fraction | None = None
    """Overlap beyond which the lesser of two boxes of a class goes; the paper has 0.3."""
    max_per_image: Count | None = None
    """At most so many detections of an image."""
    max_detections: Count = 100
    """COCO's metric looks at so many of an image and class; dense scenes need more, and a larger ``max_per_image``."""
    winograd: bool = False
    """Wide 3x3 convolutions by Winograd's algorithm: faster on a CPU, features equal to about 1e-4."""
    compile: Literal["off", "default", "reduce-overhead"] = "off"
    """torch.compile of the nets; on a GPU ``"reduce-overhead"`` replays CUDA graphs, one for each size of batch."""

    @model_validator(mode="after")
    def _fit_together(self) -> TestSettings:
        if any(b <= a for a, b in zip(self.scales, self.scales[1:], strict=False)):
            raise InputError(
                "test.scales", found=self.scales, needed="shorter sides in rising order, as (400, 600, 800)"
            )
        if len(set(self.sizes)) < len(self.sizes):
            raise InputError("test.sizes", found=self.sizes, needed="different shorter sides in pixels, 1 or more")
        if self.scale_proposals == "all" and not self.scales:
            raise InputError("test.scale_proposals", found="'all' without test.scales", needed="test.scales=(...)")
        if self.compile == "reduce-overhead" and self._looks_more:
            needed = "one look of one net, whose maps the next graph may overwrite; or test.compile=default"
            raise InputError("test.compile", found="reduce-overhead with more than one look", needed=needed)
        if self.merge == "wbf" and not (self.flip or self.sizes or self.tiles):
            needed = "test.flip=True, test.sizes=(...) or test.tiles=PIXELS"
            raise InputError("test.merge", found="'wbf' with one look only", needed=needed)
        return self

    @property
    def _looks_more(self) -> bool:
        return bool(self.scales or self.sizes or self.flip or self.ensemble or self.tiles)
