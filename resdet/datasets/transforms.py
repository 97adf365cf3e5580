"""Augmentation of detection samples by albumentations: flips, colour, crops.

The multi-scale resize belongs to the network's input and happens on the device, in ``Preprocess``.

Boxes are handed to the transforms one by one rather than through ``albumentations.Compose``: its box processor rounds
normalised coordinates to float32 (which moves every box a little), refuses boxes 0.01 px outside, and takes five times
as long as the flip it wraps. All transforms draw from one generator made from the sample's seed.
"""

from __future__ import annotations

import inspect
import os
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from resdet.errors import InputError, nearest

MIN_VISIBLE = 0.1
"""Share of a box's area that must stay in the picture; less is dropped: it cannot be recognised."""
TRIAL_SIDE = 1024
"""Pixels of the picture that transforms are tried on; no usual crop is larger."""


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
            output = _applied(transform, image, table)
            image, table = output["image"], output["bboxes"]
        table = np.asarray(table, dtype=np.float64).reshape(-1, 5)
        moved = table[:, :4] * _scale(image)
        inside = np.clip(moved, 0, _scale(image)).astype(np.float32)
        sides = inside[:, 2:] - inside[:, :2]
        kept = (sides > 0).all(1) & (sides.prod(1) >= self.min_visible * (moved[:, 2:] - moved[:, :2]).prod(1))
        return image, inside[kept], table[kept, 4].astype(np.int64)


Step = str | Mapping[str, Any]
"""One of :data:`AUGMENTATIONS`, or ``dict(type="<transform of albumentations>", ...)`` with its arguments."""


def check_augmentation(steps: Sequence[Step]) -> None:
    """Build the transforms once, to see whether they can be built and serve detection.

    Raises:
        InputError: as :func:`augmentation`.
    """
    augmentation(steps)


def augmentation(steps: Sequence[Step] = ("flip",)) -> Augmentation | None:
    """The described augmentations, in the order given; None for none.

    Args:
        steps: names of ``AUGMENTATIONS`` (flip, vertical_flip, crop, colour), or transforms of albumentations by name
            with their arguments, as ``dict(type="RandomBrightnessContrast", p=0.2)``. Boxes follow.

    Raises:
        InputError: an unknown name or argument, a value that the transform refuses, or a transform that does not
            return uint8 RGB or needs more than an image and its boxes.
    """
    if not steps:
        return None
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # or its import, seconds long, asks the network for a newer version
    return Augmentation([transform for step in steps for transform in _transforms(step)])


def moves_boxes(steps: Sequence[Step]) -> bool:
    """Whether a step may enlarge a part of the image: ``crop``, and what of albumentations is more than colour."""
    return any(step == "crop" or (isinstance(step, Mapping) and not _is_colour(str(step["type"]))) for step in steps)


def _is_colour(name: str) -> bool:
    import albumentations

    return issubclass(getattr(albumentations, name), albumentations.ImageOnlyTransform)


def _transforms(step: Step) -> list:
    if isinstance(step, str) and step in AUGMENTATIONS:
        return AUGMENTATIONS[step]()
    if not isinstance(step, Mapping) or not isinstance(step.get("type"), str):
        needed = f"{nearest(str(step), AUGMENTATIONS)}; or dict(type='<transform of albumentations>', p=0.5, ...)"
        raise InputError("augmentation", found=repr(step), needed=needed)
    return [_library_transform(step["type"], {key: value for key, value in step.items() if key != "type"})]


def _library_transform(name: str, arguments: dict[str, Any]) -> Any:
    """A transform of albumentations, tried on a picture with a box."""
    import albumentations

    kinds = {
        known: kind
        for known, kind in vars(albumentations).items()
        if inspect.isclass(kind) and issubclass(kind, albumentations.BasicTransform) and not inspect.isabstract(kind)
    }
    if name not in kinds:
        raise InputError("augmentation", found=f"type={name!r}", needed=nearest(name, kinds))
    known = [key for key in inspect.signature(kinds[name]).parameters if key not in ("always_apply", "kwargs")]
    if strange := [key for key in arguments if key not in known]:
        raise InputError(f"augmentation {name}", found=f"argument {strange[0]!r}", needed=nearest(strange[0], known))
    try:
        transform = kinds[name](**arguments)
        trial = kinds[name](**arguments | {"p": 1.0})
        trial.set_random_state(np.random.default_rng(0), random.Random(0))
        picture = np.full((TRIAL_SIDE, TRIAL_SIDE, 3), 127, np.uint8)
        output = trial(image=picture, bboxes=np.array([[0.25, 0.25, 0.75, 0.75, 0.0]]))["image"]
    except Exception as error:  # the library's own, of pydantic, OpenCV and others
        found = " ".join(str(error).split())
        needed = "arguments that it takes, and a transform of images and boxes alone"
        raise InputError(f"augmentation {name}", found=found[:200], needed=needed) from error
    if not (isinstance(output, np.ndarray) and output.dtype == np.uint8 and output.shape[2:] == (3,)):
        found = f"an output of {getattr(output, 'dtype', type(output).__name__)} and shape {tuple(output.shape)}"
        needed = "uint8 RGB; the net scales and normalises its input itself"
        raise InputError(f"augmentation {name}", found=found, needed=needed)
    return transform


def _applied(transform: Any, image: np.ndarray, table: np.ndarray) -> dict[str, Any]:
    try:
        return transform(image=image, bboxes=table)
    except Exception as error:  # the library's own, such as of a crop that is larger than the image
        found = f"{' '.join(str(error).split())[:200]}, of an image of {image.shape[0]}x{image.shape[1]}"
        needed = "arguments that fit every image of the data (crops have pad_if_needed=True)"
        raise InputError(f"augmentation {type(transform).__name__}", found=found, needed=needed) from error


def _scale(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    return np.array([width, height, width, height], dtype=np.float64)
