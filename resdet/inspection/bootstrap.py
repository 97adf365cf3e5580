"""How sure a difference between two detectors is: images drawn anew with replacement, both scored on each draw.

Both detectors see the same draws, so what a hard image costs both of them does not widen the interval. It is the
percentile interval of Efron and Tibshirani (1993), chapter 13: what another sample of images would change, not another
training.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from resdet.inspection.outcomes import Outcomes, average_precision

LEVEL = 0.95
LEAST_IMAGES = 10
"""With a class's objects in fewer, draws hardly differ, and an interval that leaves out 0 tells nothing."""


class Difference(NamedTuple):
    """The second minus the first, and the interval that 95% of the draws lie in; None where it is undefined."""

    first: float | None
    second: float | None
    difference: float | None
    low: float | None
    high: float | None


class Comparison(NamedTuple):
    """Of two detectors on the same images."""

    AP: Difference
    AP50: Difference
    class_AP: list[Difference]
    """(K,)"""
    class_images: list[int]
    """(K,) with objects of the class."""

    def verdict(self, label: int) -> str:
        """``won`` or ``lost`` where a class's interval leaves out 0, on :data:`LEAST_IMAGES` or more; else empty."""
        low, high = self.class_AP[label][3:]
        if low is None or high is None or self.class_images[label] < LEAST_IMAGES:
            return ""
        return "won" if low > 0 else "lost" if high < 0 else ""


def draw_images(count: int, *, resamples: int, seed: int) -> np.ndarray:
    """(N, B) int32: how many times each image is in each draw of N images."""
    chances = np.full(count, 1 / count)
    draws = np.random.default_rng(seed).multinomial(count, chances, size=resamples)
    return np.ascontiguousarray(draws.T.astype(np.int32))


def resampled(outcomes: Outcomes, draws: np.ndarray) -> np.ndarray:
    """AP and AP50 of each class in each draw.

    Args:
        outcomes: of N images and K classes.
        draws: (N, B).

    Returns:
        (2, K, B); NaN where a draw has no object of a class.
    """
    objects, figures = outcomes.objects, []
    for label in range(len(outcomes.totals)):
        mine = outcomes.rows(label)
        totals = draws[objects.images[(objects.labels == label) & ~objects.crowd]].sum(0)
        images = outcomes.found.images[mine]
        areas = average_precision(outcomes.right[mine], outcomes.counted[mine], images, draws=draws, totals=totals)
        figures.append([areas.mean(0), areas[0]])
    return np.stack(figures, axis=1)


def compare(first: Outcomes, second: Outcomes, *, images: int, resamples: int, seed: int) -> Comparison:
    """Differences with their intervals.

    Args:
        first: of one detector.
        second: of another one on the same images.
        images: N.
        resamples: draws B.
        seed: of the draws.
    """
    draws = draw_images(images, resamples=resamples, seed=seed)
    drawn = [resampled(outcomes, draws) for outcomes in (first, second)]  # (2, K, B) each
    plain = [resampled(outcomes, np.ones((images, 1), dtype=np.int32)) for outcomes in (first, second)]
    means = [[_mean_classes(each[number]) for each in (*plain, *drawn)] for number in (0, 1)]
    classes = zip(plain[0][0], plain[1][0], drawn[0][0], drawn[1][0], strict=True)
    objects, count = first.objects, len(first.totals)
    there = np.unique(objects.images[~objects.crowd] * count + objects.labels[~objects.crowd]) % count
    return Comparison(
        AP=_difference(*means[0]),
        AP50=_difference(*means[1]),
        class_AP=[_difference(*values) for values in classes],
        class_images=np.bincount(there, minlength=count).tolist(),
    )


def _mean_classes(areas: np.ndarray) -> np.ndarray:
    """(B,) of (K, B): over the classes that a draw has objects of."""
    known = ~np.isnan(areas)
    sums, counts = np.where(known, areas, 0).sum(0), known.sum(0)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _difference(a: np.ndarray, b: np.ndarray, drawn_a: np.ndarray, drawn_b: np.ndarray) -> Difference:
    first, second = (None if np.isnan(value[0]) else float(value[0]) for value in (a, b))
    gaps = drawn_b - drawn_a
    gaps = gaps[~np.isnan(gaps)]
    if first is None or second is None or not len(gaps):
        return Difference(first, second, None, None, None)
    low, high = np.quantile(gaps, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(first, second, second - first, float(low), float(high))
