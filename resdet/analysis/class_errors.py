"""Where a classifier errs: error of each class, classes taken for each other, the images it was most wrong about."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from resdet.analysis.chart import Bars
from resdet.classification.classifier import Classifier
from resdet.errors import InputError

BARS = 20
"""Classes and pairs in the picture, the worst; more would not be legible."""


class Answers(NamedTuple):
    """What a net said of n images, on the CPU."""

    labels: Tensor
    """(n,) int64."""
    predicted: Tensor
    """(n,) int64."""
    losses: Tensor
    """(n,) cross-entropy."""


class ClassRow(NamedTuple):
    """A class; figures are fractions, None without images."""

    name: str
    images: int
    error: float | None
    """Share of its images taken for others."""
    precision: float | None
    """Share of the images taken for it that are of it."""
    loss: float | None
    """Mean cross-entropy."""


class Pair(NamedTuple):
    """Images of one class taken for another."""

    true: str
    predicted: str
    images: int
    share: float
    """Of the images of the true class."""


@torch.no_grad()
def ask(classifier: Classifier, batches: Iterable[tuple[Tensor, Tensor]]) -> Answers:
    """What the net says of the images, in their order; puts it into eval mode.

    Raises:
        InputError: there is no image.
    """
    classifier.eval()
    device, rows = classifier.mean.device, []
    for images, labels in batches:
        images, labels = images.to(device) if isinstance(images, Tensor) else images, labels.to(device)
        scores = classifier.predict(images)
        rows.append((labels.cpu(), scores.argmax(1).cpu(), F.cross_entropy(scores, labels, reduction="none").cpu()))
    if not rows:
        raise InputError("class errors", found="no images", needed="at least one")
    return Answers(*(torch.cat(column) for column in zip(*rows, strict=True)))


def confusion(answers: Answers, num_classes: int) -> Tensor:
    """(K, K) int64 counts: row = true class, column = predicted one."""
    cells = answers.labels * num_classes + answers.predicted
    return torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes)


def class_rows(answers: Answers, classes: Sequence[str]) -> list[ClassRow]:
    """One for each class, in the order of the labels."""
    counts = confusion(answers, len(classes))
    images, taken, right = counts.sum(dim=1), counts.sum(dim=0), counts.diagonal()
    losses = torch.bincount(answers.labels, weights=answers.losses.double(), minlength=len(classes))
    columns = zip(classes, images.tolist(), taken.tolist(), right.tolist(), losses.tolist(), strict=True)
    return [
        ClassRow(name, n, 1 - r / n if n else None, r / t if t else None, loss / n if n else None)
        for name, n, t, r, loss in columns
    ]


def worst_pairs(answers: Answers, classes: Sequence[str], *, count: int = BARS) -> list[Pair]:
    """The most frequent confusions, at most so many; equal ones in the order of the labels."""
    counts = confusion(answers, len(classes))
    images = counts.sum(dim=1)
    cells = counts.fill_diagonal_(0).flatten()
    rows = []
    for cell in cells.argsort(descending=True, stable=True)[:count].tolist():
        true, predicted = divmod(cell, len(classes))
        if cells[cell]:
            share = int(cells[cell]) / int(images[true])
            rows.append(Pair(classes[true], classes[predicted], int(cells[cell]), share))
    return rows


def worst_images(answers: Answers, *, count: int = 32) -> list[int]:
    """Places of the images with the highest loss, that first."""
    return answers.losses.argsort(descending=True, stable=True)[:count].tolist()


def error_bars(rows: Sequence[ClassRow], pairs: Sequence[Pair]) -> list[Bars]:
    """The worst classes and the worst confusions."""
    worst = sorted((row for row in rows if row.images), key=lambda row: -row.error)[:BARS]
    return [
        Bars("error of a class", "top-1 error (%)", [r.name for r in worst], [100 * r.error for r in worst]),
        Bars(
            "taken for another",
            "share of the true class (%)",
            [f"{pair.true} → {pair.predicted}" for pair in pairs[:BARS]],
            [100 * pair.share for pair in pairs[:BARS]],
        ),
    ]
