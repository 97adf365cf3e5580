"""How a trained localizer looks at an image: section ``test`` of a config. The defaults are the centre crop."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from resdet.errors import InputError
from resdet.settings import Count, Fraction, Settings


class LocalizationTest(Settings):
    """Section ``test`` of a localization config: appendix C of the paper."""

    section: ClassVar[str] = "test"
    view: Literal["centre", "dense"] = "centre"
    """The centre crop, or the whole image (fully convolutional)."""
    sides: tuple[Count, ...] = ()
    """Shorter sides that the image is seen at, the candidates of all joined; empty: 8/7 of the net's crop, 256 for
    224."""
    vote: Annotated[float, Field(gt=0, le=1)] | None = None
    """Box voting: least IoU of the candidates that place the box of the best one; None leaves that as it is."""
    proposals: Count = 200
    """Per class, from the first stage to the second."""
    nms_iou: Fraction = 0.7
    """Of these: those that overlap a better one by more come after all others."""
    ensemble: tuple[str, ...] = ()
    """Checkpoints of further first stages for the same classes."""
    second: tuple[str, ...] = ()
    """Checkpoints of second stages; one or more, averaged."""
    classifiers: tuple[str, ...] = ()
    """Checkpoints of the classifiers, averaged, that predict the classes; without them the true class is given."""
    top: Count = 5
    """So many predicted classes."""
    classifier_view: Literal["centre", "ten-crop", "dense"] = "centre"
    """How the classifiers see the image."""
    classifier_sides: tuple[Count, ...] = ()
    """Shorter sides of that; empty: 8/7 of the crop, or for ``"dense"`` the paper's five, 224 ... 640 for 224."""
    classifier_crop: Count = 224
    """Side of the classifiers' training crops."""

    @model_validator(mode="after")
    def _sides_differ(self) -> LocalizationTest:
        if len(set(self.sides)) < len(self.sides):
            raise InputError("test.sides", found=self.sides, needed="different shorter sides in pixels, 1 or more")
        return self
