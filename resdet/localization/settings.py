"""How a trained localizer looks at an image: section ``test`` of a config. The defaults are the centre crop."""

from __future__ import annotations

from typing import Literal, NamedTuple

from resdet.errors import InputError, nearest

VIEWS = ("centre", "dense")
CLASSIFIER_VIEWS = ("centre", "ten-crop", "dense")


class Localization(NamedTuple):
    """Section ``test`` of a localization config: appendix C of the paper."""

    view: Literal["centre", "dense"] = "centre"
    """The centre crop, or the whole image (fully convolutional)."""
    sides: tuple[int, ...] = ()
    """Shorter sides that the image is seen at, the candidates of all joined; empty: 8/7 of the net's crop, 256 for
    224."""
    vote: float | None = None
    """Box voting: least IoU of the candidates that place the box of the best one; None leaves that as it is."""
    proposals: int = 200
    """Per class, from the first stage to the second."""
    nms_iou: float = 0.7
    """Of these: those that overlap a better one by more come after all others."""
    ensemble: tuple[str, ...] = ()
    """Checkpoints of further first stages for the same classes."""
    second: tuple[str, ...] = ()
    """Checkpoints of second stages; one or more, averaged."""
    classifiers: tuple[str, ...] = ()
    """Checkpoints of the classifiers, averaged, that predict the classes; without them the true class is given."""
    top: int = 5
    """So many predicted classes."""
    classifier_view: Literal["centre", "ten-crop", "dense"] = "centre"
    """How the classifiers see the image."""
    classifier_sides: tuple[int, ...] = ()
    """Shorter sides of that; empty: 8/7 of the crop, or for ``"dense"`` the paper's five, 224 ... 640 for 224."""
    classifier_crop: int = 224
    """Side of the classifiers' training crops."""


def check(settings: Localization) -> None:
    """Refuse settings that make no sense.

    Raises:
        InputError: names the setting.
    """
    s = settings
    for name, views in (("view", VIEWS), ("classifier_view", CLASSIFIER_VIEWS)):
        if (value := getattr(s, name)) not in views:
            raise InputError(f"test.{name}", found=repr(value), needed=nearest(str(value), views))
    if any(side < 1 for side in s.sides) or len(set(s.sides)) < len(s.sides):
        raise InputError("test.sides", found=s.sides, needed="different shorter sides in pixels, 1 or more")
    if s.vote is not None and not 0 < s.vote <= 1:
        raise InputError("test.vote", found=s.vote, needed="an IoU in (0, 1], such as 0.5")
    if not 0 <= s.nms_iou <= 1:
        raise InputError("test.nms_iou", found=s.nms_iou, needed="a number in [0, 1]")
    for name, value in (("proposals", s.proposals), ("top", s.top), ("classifier_crop", s.classifier_crop)):
        if value < 1:
            raise InputError(f"test.{name}", found=value, needed="1 or more")
