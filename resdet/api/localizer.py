"""A localizer as a function of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from resdet.api.drawing import draw_detections
from resdet.api.pictures import Picture, plain_values, to_tensor, usable_device
from resdet.engine.checkpoints import read_checkpoint
from resdet.engine.tasks.localization import build_localizer, load_stage
from resdet.errors import InputError, nearest
from resdet.localization.localizer import PerClassLocalizer
from resdet.localization.settings import LocalizationTest
from resdet.structures import Localizations


class Localizer:
    """A trained localizer: the box of a class, for classes that are given or that a classifier predicts.

    Checkpoints alone make it; no config and no data set is needed.

    Args:
        checkpoint: of a first stage, last.pth or best.pth.
        classifier: checkpoint of a classifier for the same classes, or several, which are averaged. It sees crops of
            ``test["classifier_crop"]``, 224 unless another is given: the side of the crops that it was trained on.
        second: checkpoint of a second stage, or several, which are averaged.
        device: ``"cpu"``, ``"cuda"``, ...; the GPU where there is one.
        test: how it looks at an image, as ``{"view": "dense", "sides": (256, 384)}``: see
            :class:`resdet.localization.settings.LocalizationTest`.

    Raises:
        InputError: a checkpoint is missing, of another kind or for other classes; settings that make no sense.

    Attributes:
        classes: K names, index = label.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        *,
        classifier: str | Path | Sequence[str | Path] = (),
        second: str | Path | Sequence[str | Path] = (),
        device: str | torch.device | None = None,
        test: Mapping[str, object] | None = None,
    ) -> None:
        files = {"classifiers": classifier, "second": second}
        files = {k: tuple(map(str, [v] if isinstance(v, (str, Path)) else v)) for k, v in files.items()}
        said = plain_values(test or {}) | {k: v for k, v in files.items() if v}
        settings = LocalizationTest.read(said, where="Localizer")
        self.classes: tuple[str, ...] = tuple(read_checkpoint(checkpoint)["meta"]["classes"])
        net = load_stage(checkpoint, self.classes, PerClassLocalizer)
        predictor = build_localizer(net, settings, self.classes)
        self.device = usable_device(device)
        self.net = predictor.to(self.device, memory_format=torch.channels_last).eval()

    def __call__(
        self, images: Picture | Sequence[Picture], classes: Sequence[str | int] | str | int | None = None
    ) -> Localizations | list[Localizations]:
        """Localize.

        Args:
            images: one picture, or a list of them, of any sizes.
            classes: names or labels of what to look for in each of them; None: what the classifier predicts.

        Returns:
            A box for each class, of one picture or a list of them; boxes in pixels of the picture, on the CPU.

        Raises:
            InputError: a class that is not one of the net's; no classes, and no classifier.
        """
        single = not isinstance(images, (list, tuple))
        tensors = [to_tensor(image) for image in ([images] if single else images)]
        if not tensors:
            return []
        asked = None if classes is None else [self._labels(classes)] * len(tensors)
        answers = [Localizations(*(part.cpu() for part in a)) for a in self.net.predict(tensors, asked)]
        return answers[0] if single else answers

    def draw(self, image: Picture, answer: Localizations) -> Image.Image:
        """The picture with the boxes of an answer, which may be cut short: ``Localizations(*(part[:1] ...))``."""
        return draw_detections(to_tensor(image), answer.boxes, answer.labels, answer.scores, classes=self.classes)

    def _labels(self, classes: Sequence[str | int] | str | int) -> Tensor:
        named = [classes] if isinstance(classes, (str, int)) else list(classes)
        for name in named:
            if name not in self.classes and not (isinstance(name, int) and 0 <= name < len(self.classes)):
                raise InputError("classes", found=repr(name), needed=nearest(str(name), self.classes))
        return torch.tensor([name if isinstance(name, int) else self.classes.index(name) for name in named])
