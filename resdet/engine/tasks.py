"""The nets as mmengine sees them: ``forward(*batch, mode)``. Nothing but this adapter stands between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.model import BaseModel
from torch import Tensor, nn

from resdet.structures import Detections, Target


class DetectionTask(BaseModel):
    """A detector in training: losses, or detections beside the targets they answer."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
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
        super().__init__()
        self.net = net

    def forward(self, images: Tensor, labels: Tensor, mode: str = "loss") -> Any:
        """``mode="loss"``: the dict of losses; ``mode="predict"``: one (logits, labels) a batch."""
        if mode == "loss":
            return self.net.loss(images, labels)
        return [(self.net.predict(images), labels)]
