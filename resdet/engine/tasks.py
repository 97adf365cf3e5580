"""The nets as mmengine sees them: ``forward(*batch, mode)``. Nothing but this adapter stands between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.model import BaseDataPreprocessor, BaseModel
from torch import Tensor, nn

from resdet.localization.predictor import LocalizationPredictor
from resdet.structures import Detections, RegionTarget, Target


class DetectionTask(BaseModel):
    """A detector in training: losses, or detections beside the targets they answer."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(data_preprocessor=BaseDataPreprocessor(non_blocking=True))
        self.net = net

    def forward(self, images: Sequence[Tensor], targets: Sequence[Target], mode: str = "loss") -> Any:
        """``mode="loss"``: the dict of losses; ``mode="predict"``: one (Detections, Target) an image."""
        if mode == "loss":
            return self.net.loss(images, targets)
        answers: list[Detections] = self.net.predict(images)
        return list(zip(answers, targets, strict=True))


class ClassificationTask(BaseModel):
    """A classifier in training: its loss, or logits beside the labels."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(data_preprocessor=BaseDataPreprocessor(non_blocking=True))
        self.net = net

    def forward(self, images: Tensor, labels: Tensor, mode: str = "loss") -> Any:
        """``mode="loss"``: the dict of losses; ``mode="predict"``: one (logits, labels) a batch."""
        if mode == "loss":
            return self.net.loss(images, labels)
        return [(self.net.predict(images), labels)]


class LocalizationTask(BaseModel):
    """A localizer of either stage in training: its losses, or boxes beside the targets they answer.

    Args:
        net: what is trained, and saved.
        predictor: what answers, of which ``net`` is a part. Further nets in it are neither trained nor saved.
    """

    def __init__(self, net: nn.Module, predictor: LocalizationPredictor | None = None) -> None:
        super().__init__(data_preprocessor=BaseDataPreprocessor(non_blocking=True))
        self.net = net
        self._predictor = (predictor,)  # in a tuple: not a module of this one

    def answer_by(self, predictor: LocalizationPredictor) -> None:
        """Take another predictor."""
        self._predictor = (predictor,)

    def forward(self, images: Sequence[Tensor], targets: Sequence[Target | RegionTarget], mode: str = "loss") -> Any:
        """``mode="loss"``: the dict of losses; ``mode="predict"``: an image's (box of its class, pairs, Target).

        The box is (4,), and None where the classes are predicted; else the pairs, Localizations, are.
        """
        if mode == "loss":
            return self.net.loss(images, targets)
        (predictor,) = self._predictor
        if predictor.classifier is not None:
            return [(None, answer, target) for answer, target in zip(predictor.predict(images), targets, strict=True)]
        answers = predictor.predict(images, [target.labels[~target.ignore][:1] for target in targets])
        return [(answer.boxes[0], None, target) for answer, target in zip(answers, targets, strict=True)]
