"""Augmentation of detection samples by albumentations: flips, colour, crops.

The multi-scale resize belongs to the network's input and happens on the device, in ``Preprocess``.

Boxes are handed to the transforms one by one rather than through ``albumentations.Compose``: its box processor rounds
normalised coordinates to float32 (which moves every box a little), refuses boxes 0.01 px outside, and takes five times
as long as the flip it wraps. All transforms draw from one generator made from the sample's seed.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from resdet.errors import InputError, nearest

MIN_VISIBLE = 0.1
"""Share of a box's area that must stay in the picture; less is dropped: it cannot be recognised."""


class Flip:
    """What albumentations' ``HorizontalFlip`` does and draws, at a fraction of its cost.

    With that one, a loader that only decodes and flips would spend 6% of its time on it.

    Args:
        p: probability.
    """

    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    def set_random_state(self, generator: np.random.Generator, chooser: random.Random) -> None:
        """As albumentations' transforms: ``chooser`` says whether, and nothing else is drawn."""
        self._chooser = chooser

    def __call__(self, image: np.ndarray, bboxes: np.ndarray) -> dict[str, np.ndarray]:
        """Of an (H, W, 3) image and (G, 5) rows of x1, y1, x2, y2 as shares of its sides, and anything."""
        if self._chooser.random() < self.p:
            image = cv2.flip(image, 1)
            bboxes = np.concatenate([1 - bboxes[:, [2]], bboxes[:, [1]], 1 - bboxes[:, [0]], bboxes[:, 3:]], axis=1)
        return {"image": image, "bboxes": bboxes}


def _flip() -> list:
    return [Flip()]


def _vertical_flip() -> list:
    import albumentations

    return [albumentations.VerticalFlip(p=0.5)]


def _colour() -> list:
    import albumentations

    # SSD's photometric distortion (brightness +-32 of 255, contrast and saturation 0.5-1.5, hue +-18 of 360 degrees).
    jitter = {"brightness": (0.875, 1.125), "contrast": (0.5, 1.5), "saturation": (0.5, 1.5), "hue": (-0.05, 0.05)}
    return [albumentations.ColorJitter(p=0.5, **jitter)]


def _crop() -> list:
    import albumentations

    # Keeps between half and all of each side. Preprocess scales the rest up again: a zoom of up to 2.
    return [albumentations.RandomCropFromBorders(0.25, 0.25, 0.25, 0.25, p=0.5)]


AUGMENTATIONS: dict[str, Callable[[], list]] = {
    "flip": _flip,
    "vertical_flip": _vertical_flip,
    "crop": _crop,
    "colour": _colour,
}
"""Name → builder of albumentations transforms, for configs."""


class Augmentation:
    """Applies albumentations transforms to an image and its boxes, as a pure function of a seed.

    Args:
        transforms: any albumentations transforms that return an image of uint8 RGB; applied in order.
        min_visible: boxes that keep less than this share of their area are dropped.
    """

    def __init__(self, transforms: Sequence, *, min_visible: float = MIN_VISIBLE) -> None:
        self.transforms = list(transforms)
        self.min_visible = min_visible

    def __call__(self, image: np.ndarray, boxes: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Augment one sample; the result depends on the arguments alone.

        Args:
            image: (H, W, 3) uint8 RGB.
            boxes: (G, 4) float32 xyxy, frame: original.
            seed: any non-negative integer.

        Returns:
            image: (H', W', 3) uint8.
            boxes: (G', 4) float32 xyxy inside the image, frame: sample.
            kept: (G',) rows of the input that they come from.
        """
        generator, chooser = np.random.default_rng(seed), random.Random(seed)
        rows = np.arange(len(boxes), dtype=np.float64)[:, None]
        table = np.concatenate([boxes / _scale(image), rows], axis=1)  # float64 keeps a flip exact
        for transform in self.transforms:
            transform.set_random_state(generator, chooser)
            output = transform(image=image, bboxes=table)
            image, table = output["image"], output["bboxes"]
        table = np.asarray(table, dtype=np.float64).reshape(-1, 5)
        moved = table[:, :4] * _scale(image)
        inside = np.clip(moved, 0, _scale(image)).astype(np.float32)
        sides = inside[:, 2:] - inside[:, :2]
        kept = (sides > 0).all(1) & (sides.prod(1) >= self.min_visible * (moved[:, 2:] - moved[:, :2]).prod(1))
        return image, inside[kept], table[kept, 4].astype(np.int64)


def check_augmentation(names: Sequence[str]) -> None:
    """Refuse an unknown name.

    Raises:
        InputError: one of the names is not in ``AUGMENTATIONS``.
    """
    for name in names:
        if name not in AUGMENTATIONS:
            raise InputError("augmentation", found=repr(name), needed=nearest(str(name), AUGMENTATIONS))


def augmentation(names: Sequence[str] = ("flip",)) -> Augmentation | None:
    """The named augmentations, in the order given; None for no names.

    Args:
        names: of ``AUGMENTATIONS``: flip, vertical_flip, crop, colour.

    Raises:
        InputError: an unknown name.
    """
    check_augmentation(names)
    if not names:
        return None
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # or its import, seconds long, asks the network for a newer version
    return Augmentation([transform for name in names for transform in AUGMENTATIONS[name]()])


def _scale(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    return np.array([width, height, width, height], dtype=np.float64)
