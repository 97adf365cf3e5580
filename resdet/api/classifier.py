"""A classifier as a function of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from resdet.api.pictures import Picture, to_tensor, usable_device
from resdet.classification.ensemble import Ensemble
from resdet.datasets import views
from resdet.datasets.sources import test_view
from resdet.engine.config import load_config
from resdet.engine.tasks.classification import TestCrop, read_classifier
from resdet.errors import InputError

PAPER_SIDES = (224, 256, 384, 480, 640)
"""Shorter sides of the paper's dense test, for crops of 224."""


class Classifications(NamedTuple):
    """What is in one picture; best first."""

    labels: Tensor
    """(K,) int64."""
    names: tuple[str, ...]
    """The K class names in that order."""
    probabilities: Tensor
    """(K,) float32."""


class Classifier:
    """A trained classifier.

    ``Classifier(config, file)``: the file may be a checkpoint of a run, a published safetensors file, or a state dict
    of the same net from torchvision, timm or elsewhere. ``Classifier(file)``: a checkpoint of a run or a published
    file, which tell their net.

    Args:
        config_or_file: see above.
        checkpoint: see above.
        device: ``"cpu"``, ``"cuda"``, ...; the GPU where there is one.
        view: ``"centre"`` crop, ``"ten-crop"``, or ``"dense"``: the whole image, fully convolutional.
        sides: shorter sides of the dense views; empty: the paper's five, in proportion to the crop.
        flip: average with the mirror image (the other views are mirrored already).
        classes: K names, where the file does not tell them.
        options: overrides of the config, as ``"model.window=7"``.

    Raises:
        InputError: the file does not fit the config, or does not tell its net; a view that makes no sense.

    Attributes:
        classes: K names, index = label.
    """

    def __init__(
        self,
        config_or_file: str | Path,
        checkpoint: str | Path | None = None,
        *,
        device: str | torch.device | None = None,
        view: Literal["centre", "ten-crop", "dense"] = "centre",
        sides: Sequence[int] = (),
        flip: bool = False,
        classes: Sequence[str] | None = None,
        options: Sequence[str] = (),
    ) -> None:
        if checkpoint is None:
            if Path(config_or_file).suffix == ".py":
                raise InputError("Classifier", found="a config alone", needed="Classifier(config, checkpoint)")
            loaded = read_classifier(config_or_file)
        else:
            config = load_config(config_or_file, options)
            if config.task.name != "classification":
                found = f"task = {config.task.name!r}"
                raise InputError(f"config {config_or_file}", found=found, needed="a classification config")
            loaded = read_classifier(checkpoint, config)
        net, count = loaded.build()
        names = tuple(classes or loaded.classes or map(str, range(count)))
        if len(names) != count:
            raise InputError("classes", found=f"{len(names)} names", needed=f"{count}, as the net has")
        self.classes: tuple[str, ...] = names
        if flip and view != "centre":
            raise InputError("flip", found=f"view={view!r}", needed="view='centre': the others are mirrored already")
        self._view = _view(loaded.crop, view, tuple(sides))
        self.device = usable_device(device)
        self.net: nn.Module = Ensemble([net], flip=flip).to(self.device).eval()

    @torch.no_grad()
    def __call__(self, images: Picture | Sequence[Picture]) -> Classifications | list[Classifications]:
        """Classify.

        Args:
            images: one picture, or a list of them, of any sizes. An answer does not depend on the others.

        Returns:
            The classes of one picture, best first, or a list of such; on the CPU.
        """
        single = not isinstance(images, (list, tuple))
        pictures = [to_tensor(image).permute(1, 2, 0).cpu().numpy() for image in ([images] if single else images)]
        if not pictures:
            return []
        generator = np.random.default_rng(0)  # these views draw nothing
        seen = [views.to_tensor(self._view(picture, generator)) for picture in pictures]
        if isinstance(seen[0], Tensor):
            scores = self.net.predict(torch.stack(seen).to(self.device))
        else:
            scores = self.net.predict([[part.to(self.device) for part in of_image] for of_image in seen])
        ranked = scores.softmax(1).cpu().sort(dim=1, descending=True, stable=True)
        answers = [
            Classifications(labels, tuple(self.classes[label] for label in labels), probabilities)
            for probabilities, labels in zip(*ranked, strict=True)
        ]
        return answers[0] if single else answers


def _view(crop: TestCrop, view: str, sides: tuple[int, ...]) -> views.View:
    if view not in ("centre", "ten-crop", "dense"):
        raise InputError("view", found=repr(view), needed="centre, ten-crop or dense")
    if sides and view != "dense":
        raise InputError("sides", found=sides, needed="view='dense'")
    if view == "dense":
        sides = sides or tuple(round(side * crop.crop / 224) for side in PAPER_SIDES)
        return test_view(crop=crop.crop, dense=sides)
    if view == "ten-crop" and crop.shorter_side <= crop.crop:
        found = f"a net that sees images of {crop.shorter_side} whole"
        raise InputError("view='ten-crop'", found=found, needed="view='centre' with flip=True")
    return test_view(crop=crop.crop, shorter_side=crop.shorter_side, crops=1 if view == "centre" else 10)
