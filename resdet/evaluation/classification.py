"""Top-1 and top-5 error, as counts per class that batches and processes merge by addition.

Every figure is a fraction in [0, 1]. No sample is gathered or padded away: each process must be given every image of
its share exactly once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch import distributed as dist

from resdet.errors import InputError


def ranks(logits: Tensor, labels: Tensor) -> Tensor:
    """Place of the right class in the order of the logits, 0 = first.

    Equal logits rank by class index (so a net that answers a constant gets chance level, on every device); a logit that
    is NaN ranks before the right class, and a right class whose own logit is NaN ranks last, at K.

    Args:
        logits: (N, K).
        labels: (N,) int64 in [0, K).

    Returns:
        (N,) int64 in [0, K].
    """
    own = logits.gather(1, labels[:, None])
    earlier = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    return (~(logits <= own)).sum(dim=1) + ((logits == own) & earlier).sum(dim=1)


def topk_correct(logits: Tensor, labels: Tensor, ks: Sequence[int] = (1, 5)) -> Tensor:
    """How many images have the right class among the k highest logits.

    Args:
        logits: (N, K).
        labels: (N,) int64 in [0, K).
        ks: numbers of guesses; a k of K or more counts every image (whose logit is not NaN).

    Returns:
        (len(ks),) int64 counts.
    """
    limits = torch.tensor(ks, device=logits.device).clamp(max=logits.shape[1])
    return (ranks(logits, labels)[:, None] < limits).sum(dim=0)


class TopK:
    """Top-k accuracy and error of a whole data set.

    Args:
        num_classes: K.
        ks: numbers of guesses. Those that could not be wrong (k >= K, for k > 1) are left out: with five classes or
            fewer there is no top-5.
        device: where the counts are kept; the logits' device spares a copy per batch.
    """

    def __init__(self, num_classes: int, ks: Sequence[int] = (1, 5), *, device: torch.device | str = "cpu") -> None:
        self.num_classes = num_classes
        self.ks = tuple(k for k in ks if k == 1 or k < num_classes)
        # (K, 1 + len(ks)): images of the class, then those right within each k
        self.counts = torch.zeros(num_classes, 1 + len(self.ks), dtype=torch.int64, device=device)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch.

        Args:
            logits: (N, K).
            labels: (N,) int64 in [0, K).

        Raises:
            InputError: the logits are not of K classes.
        """
        if logits.ndim != 2 or logits.shape[1] != self.num_classes:
            raise InputError(
                "logits of the classifier",
                found=f"shape {tuple(logits.shape)}",
                needed=f"(N, {self.num_classes}): the data set has {self.num_classes} classes",
            )
        right = ranks(logits, labels)[:, None] < torch.tensor((logits.shape[1] + 1, *self.ks), device=logits.device)
        self.counts.index_add_(0, labels.to(self.counts.device), right.to(self.counts))

    def total(self) -> Tensor:
        """(K, 1 + len(ks)) counts of all processes; every process must call it."""
        counts = self.counts.clone()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts)
        return counts

    def summary(self) -> dict[str, float]:
        """``top1``, ``top1_error``, ``top5``, ``top5_error``, ``mean_class_top1`` and ``images``, over all processes.

        Every process must call it. ``mean_class_top1`` is the mean over the classes that have images.

        Raises:
            InputError: no image was counted.
        """
        counts = self.total().cpu()
        images = int(counts[:, 0].sum())
        if not images:
            raise InputError("classification metric", found="no images", needed="at least one image to evaluate")
        figures: dict[str, float] = {}
        for k, correct in zip(self.ks, counts[:, 1:].sum(dim=0).tolist(), strict=True):
            figures[f"top{k}"] = correct / images
            figures[f"top{k}_error"] = (images - correct) / images
        seen = counts[counts[:, 0] > 0].double()
        for column, k in enumerate(self.ks, start=1):
            if k == 1:
                figures["mean_class_top1"] = float((seen[:, column] / seen[:, 0]).mean())
        return {**figures, "images": images}

    def per_class(self, classes: Sequence[str]) -> list[dict[str, str | int | float | None]]:
        """One row per class: its name, its number of images, its accuracies (None without images).

        Every process must call it.

        Args:
            classes: K names, index = label.
        """
        rows: list[dict[str, str | int | float | None]] = []
        for name, (images, *correct) in zip(classes, self.total().tolist(), strict=True):
            accuracies = {f"top{k}": c / images if images else None for k, c in zip(self.ks, correct, strict=True)}
            rows.append({"class": name, "images": images, **accuracies})
        return rows
