"""How a trained detector looks at an image: section ``test`` of a config. Everything is off by default."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args, get_origin, get_type_hints

from resdet.errors import InputError, nearest

PAPER_SCALES = (200, 400, 600, 800, 1000)
"""Shorter sides of the paper's pyramid."""


class Inference(NamedTuple):
    """Section ``test``: appendix B of the paper, and what users of other frameworks know.

    ``tools/eval.py``, ``tools/infer.py`` and ``Detector`` follow it; validation during training looks once.
    Names are the same in configs (``test = dict(refine=1)``), on the command line (``--refine 1``) and in Python
    (``Detector(..., test={"refine": 1})``). All of them may be combined.
    """

    refine: int = 0
    """Rounds of box refinement; the paper's is 1."""
    vote: float | None = None
    """Box voting: least IoU of the boxes that vote; the paper's is 0.5."""
    scales: tuple[int, ...] = ()
    """Multi-scale testing: shorter sides of the pyramid, rising; the paper's are (200, 400, 600, 800, 1000)."""
    region_side: float = 224.0
    """Each region is seen at the two adjacent scales at which its side is nearest to this many pixels."""
    scale_proposals: Literal["one", "all"] = "one"
    """Proposals from the net's own size alone (the paper), or from all scales."""
    ensemble: tuple[str, ...] = ()
    """Checkpoints of further nets, of any depth and kind, for the same classes. Each is tested with its own size and
    proposals, unless an override (``model.shorter_side=...``) says them of all."""
    flip: bool = False
    """Detect on the mirrored image too."""
    sizes: tuple[int, ...] = ()
    """Detect at further shorter sides too; with ``scales``, they give further proposals."""
    merge: Literal["nms", "wbf"] = "nms"
    """How ``flip`` and ``sizes`` are merged: one suppression over all boxes, or weighted box fusion of the answers."""
    wbf_iou: float = 0.55
    """Overlap beyond which boxes are fused."""
    nms: Literal["hard", "linear", "gaussian"] = "hard"
    """Suppression, or Soft-NMS with one of its two decays."""
    sigma: float = 0.5
    """Of the Gaussian."""
    class_agnostic_nms: bool = False
    """Let boxes of different classes suppress each other."""
    score_threshold: float | None = None
    """Least score of a detection; None leaves the model's, as with the next two."""
    nms_iou: float | None = None
    """Overlap beyond which the lesser of two boxes of a class goes; the paper has 0.3."""
    max_per_image: int | None = None
    """At most so many detections of an image."""
    winograd: bool = False
    """Wide 3x3 convolutions by Winograd's algorithm: faster on a CPU, features equal to about 1e-4."""
    compile: Literal["off", "default", "reduce-overhead"] = "off"
    """torch.compile of the nets; on a GPU ``"reduce-overhead"`` replays CUDA graphs, one for each size of batch."""


def check(settings: Inference) -> None:
    """Refuse settings that make no sense.

    Raises:
        InputError: names the setting.
    """
    s = settings
    for name, kind in get_type_hints(Inference).items():
        legal, value = get_args(kind), getattr(s, name)
        if get_origin(kind) is Literal and value not in legal:
            raise InputError(f"test.{name}", found=repr(value), needed=nearest(str(value), legal))
    for name, value in (("score_threshold", s.score_threshold), ("nms_iou", s.nms_iou), ("wbf_iou", s.wbf_iou)):
        if value is not None and not 0 <= value <= 1:
            raise InputError(f"test.{name}", found=value, needed="a number in [0, 1]")
    if any(b <= a for a, b in zip((0, *s.scales), s.scales, strict=False)):
        raise InputError("test.scales", found=s.scales, needed="shorter sides in rising order, as (400, 600, 800)")
    if any(size < 1 for size in s.sizes) or len(set(s.sizes)) < len(s.sizes):
        raise InputError("test.sizes", found=s.sizes, needed="different shorter sides in pixels, 1 or more")
    if s.vote is not None and not 0 < s.vote <= 1:
        raise InputError("test.vote", found=s.vote, needed="an IoU in (0, 1]; the paper's is 0.5")
    if s.scale_proposals == "all" and not s.scales:
        raise InputError("test.scale_proposals", found="'all' without test.scales", needed="test.scales=(...)")
    if s.compile == "reduce-overhead" and (s.scales or s.sizes or s.flip or s.ensemble):
        needed = "one look of one net, whose maps the next graph may overwrite; or test.compile=default"
        raise InputError("test.compile", found="reduce-overhead with more than one look", needed=needed)
    if s.merge == "wbf" and not (s.flip or s.sizes):
        raise InputError("test.merge", found="'wbf' with one look only", needed="test.flip=True or test.sizes=(...)")
    bounds = (("refine", 0), ("region_side", 1), ("sigma", 1e-6), ("max_per_image", 1))
    for name, least in bounds:
        value = getattr(s, name)
        if value is not None and value < least:
            raise InputError(f"test.{name}", found=value, needed=f"{least} or more")
