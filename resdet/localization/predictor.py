"""A localizer as it is used: the classes of an image from classifiers, or given; then a box for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from resdet.classification.classifier import Classifier
from resdet.classification.ensemble import Ensemble
from resdet.datasets.sources import test_view
from resdet.datasets.views import to_tensor
from resdet.errors import InputError
from resdet.localization.ensemble import check_classes
from resdet.localization.localizer import PerClassLocalizer
from resdet.localization.region_localizer import RegionLocalizer
from resdet.localization.settings import LocalizationTest
from resdet.localization.system import localize
from resdet.structures import Localizations

PAPER_SIDES = (224, 256, 384, 480, 640)
"""Shorter sides of the dense classifiers, for crops of 224."""


class LocalizationPredictor(nn.Module):
    """Nets of both stages and classifiers, with settings for test.

    Args:
        first: first stages, one or more, for the same classes.
        second: second stages; without one the first stages' boxes are the answer.
        classifiers: that predict the classes; without one they must be given.
        settings: of the looks; which nets there are is said above.

    Raises:
        InputError: settings that make no sense; nets of different numbers of classes.
    """

    def __init__(
        self,
        first: Sequence[PerClassLocalizer],
        *,
        second: Sequence[RegionLocalizer] = (),
        classifiers: Sequence[Classifier] = (),
        settings: LocalizationTest | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings or LocalizationTest()
        check_classes([*first, *second])
        self.first, self.second = nn.ModuleList(first), nn.ModuleList(second)
        self.classifier = Ensemble(classifiers) if classifiers else None
        self.classifier_view = _classifier_view(self.settings)
        for net in first:
            net.looks(self.settings)  # refuses sides that do not fit before any image is read

    @torch.no_grad()
    def top_classes(self, images: Sequence[Tensor]) -> list[Tensor]:
        """The classes that the classifiers find most probable, (C,) of each image, best first.

        Raises:
            InputError: there is no classifier.
        """
        if self.classifier is None:
            needed = "classes=..., or a classifier that predicts them (test.classifiers)"
            raise InputError("classes of the images", found="none given", needed=needed)
        device = next(self.parameters()).device
        views = [to_tensor(self.classifier_view(image.permute(1, 2, 0).cpu().numpy(), None)) for image in images]
        single = [view for view in views if isinstance(view, Tensor)]
        several = [[view.to(device) for view in of_image] for of_image in views if not isinstance(of_image, Tensor)]
        scores = self.classifier.predict(several or torch.stack(single).to(device))
        return list(scores.topk(min(self.settings.top, scores.shape[1]), dim=1).indices)

    @torch.no_grad()
    def predict(self, images: Sequence[Tensor], classes: Sequence[Tensor] | None = None) -> list[Localizations]:
        """A box for each class of each image, in the frame of what was passed in. Call it in eval mode.

        Args:
            images: uint8 RGB (3, H, W), of any sizes.
            classes: (C,) int64 of each image, C the same in all; None: those that the classifiers predict.
        """
        asked = self.top_classes(images) if classes is None else classes
        first = cast(Sequence[PerClassLocalizer], self.first)
        second = cast(Sequence[RegionLocalizer], self.second)
        return localize(images, classes=asked, first=first, second=second, settings=self.settings)


def _classifier_view(settings: LocalizationTest):
    """How the classifiers see an image: as in :func:`resdet.datasets.sources.test_view`."""
    crop, sides = settings.classifier_crop, settings.classifier_sides
    if settings.classifier_view == "dense":
        return test_view(crop=crop, dense=sides or tuple(round(side * crop / 224) for side in PAPER_SIDES))
    if len(sides) > 1:
        needed = "one shorter side, or test.classifier_view=dense"
        raise InputError("test.classifier_sides", found=sides, needed=needed)
    side = sides[0] if sides else round(crop * 8 / 7)
    return test_view(crop=crop, shorter_side=side, crops=1 if settings.classifier_view == "centre" else 10)
