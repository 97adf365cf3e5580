"""Several classifiers as one: the mean of their probabilities (the paper's ensemble of six, Table 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from resdet.classification.classifier import Classifier
from resdet.classification.views import mean_scores
from resdet.errors import InputError


class Ensemble(nn.Module):
    """Asks each net about the same images; each normalises them by its own mean and deviation.

    Nets, and the views of each, weigh alike.

    Args:
        classifiers: one or more, of the same classes in the same order.
        flip: each looks at the mirror images, too.
    """

    def __init__(self, classifiers: Sequence[Classifier], *, flip: bool = False) -> None:
        super().__init__()
        if not classifiers:
            raise InputError("Ensemble", found="no classifier", needed="one or more")
        self.classifiers, self.flip = nn.ModuleList(classifiers), flip

    def predict(self, images: Tensor | Sequence[Sequence[Tensor]]) -> Tensor:
        """Scores of images. Call it in eval mode.

        Args:
            images: one view each or many, as :meth:`resdet.classification.classifier.Classifier.predict` takes them.

        Returns:
            (N, K) float32: the log of the mean probabilities over nets and views; of one net alone, what it says.

        Raises:
            InputError: the nets differ in their number of classes; with ``flip``, images that are lists of views.
        """
        looks = [images]
        if self.flip:
            if not isinstance(images, Tensor):
                raise InputError("flip", found="whole images, which are mirrored already", needed="one crop of each")
            looks.append(images.flip(-1))
        nets = cast(Sequence[Classifier], self.classifiers)
        scores = [classifier.predict(look) for classifier in nets for look in looks]
        if len({score.shape for score in scores}) > 1:
            found = f"nets of {', '.join(str(score.shape[1]) for score in scores)} classes"
            raise InputError("Ensemble", found=found, needed="the same number of classes in each")
        return mean_scores(torch.stack(scores, dim=1))
