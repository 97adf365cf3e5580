"""The training view of a localizer: the random 224 x 224 crops of the paper's appendix C, with the boxes in them.

Scale, crop, flip and colour are drawn as :class:`resdet.datasets.views.PaperView` draws them for classification, whose
net is fine-tuned.

Differs from the paper: it tells of random crops alone; here crops that show no object are drawn again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from resdet.datasets.views import PaperView, crop_of_resized, scaled_hw, shift_colours
from resdet.errors import InputError

DRAWS = 20
"""Crops that are tried before one is laid on a box. A small object in a corner is missed by most crops; one that each
shows with a chance of 1/10 is found by lot in 7 of 8 images."""


@dataclass(frozen=True)
class LocalizationCrop:
    """A random crop of a random scale, its mirror image, and the boxes in it; a ``Transform`` of ``DetectionDataset``.

    Boxes are clipped to the crop. One is kept while ``min_visible`` of it is in the crop, or, for a box larger than
    the crop, while it fills that share of the crop: a close view of an object is one too. An image with boxes always
    keeps at least one.

    Args:
        crop: side of the view.
        shorter_side: least and largest shorter side (both included) the whole image is scaled to.
        flip: probability of the mirror image.
        colour_std: standard deviation of AlexNet's alpha; 0 leaves the colours alone.
        min_visible: see above; 0.25 is half of each side at a corner. Less is seldom enough to tell class or extent.
    """

    crop: int = 224
    shorter_side: tuple[int, int] = (256, 480)
    flip: float = 0.5
    colour_std: float = 0.1
    min_visible: float = 0.25

    def __post_init__(self) -> None:
        PaperView(self.crop, tuple(self.shorter_side), self.flip, self.colour_std)  # the same limits
        if not 0 <= self.min_visible <= 1:
            found = f"min_visible = {self.min_visible}"
            raise InputError("LocalizationCrop", found=found, needed="a share in [0, 1]")

    def __call__(self, image: np.ndarray, boxes: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Crop one sample; the result depends on the arguments alone.

        Args:
            image: (H, W, 3) uint8 RGB.
            boxes: (G, 4) float32 xyxy, frame: original.
            seed: any non-negative integer.

        Returns:
            image: (crop, crop, 3) uint8 RGB.
            boxes: (G', 4) float32 xyxy inside the crop, frame: sample; G' >= 1 where G >= 1.
            kept: (G',) rows of the input that they come from.
        """
        generator = np.random.default_rng(seed)
        for _ in range(DRAWS):
            side = int(generator.integers(self.shorter_side[0], self.shorter_side[1] + 1))
            resized_hw = scaled_hw(image.shape[:2], side)
            top, left = (int(generator.integers(length - self.crop + 1)) for length in resized_hw)
            inside, kept = self._inside(_scaled(boxes, image, resized_hw), (top, left))
            if kept.any() or not len(boxes):
                break
        else:
            resized_hw = scaled_hw(image.shape[:2], self.shorter_side[0])
            moved = _scaled(boxes, image, resized_hw)
            row = int(generator.integers(len(boxes)))
            top, left = self._around(moved[row], resized_hw, generator)
            inside, kept = self._inside(moved, (top, left))
            kept[row] = True
        view = crop_of_resized(image, resized_hw, top_left=(top, left), crop=self.crop)
        if generator.random() < self.flip:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            inside[:, [0, 2]] = self.crop - inside[:, [2, 0]]
        if self.colour_std:
            view = shift_colours(view, generator.normal(0.0, self.colour_std, size=3))
        return np.array(view), inside[kept].astype(np.float32), np.flatnonzero(kept)

    def _inside(self, boxes: np.ndarray, top_left: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Boxes of the resized image, clipped to a crop and in its frame: (G, 4), and (G,) which of them are kept."""
        top, left = top_left
        clipped = np.clip(boxes - (left, top, left, top), 0, self.crop)
        visible = (clipped[:, 2:] - clipped[:, :2]).prod(1)
        least = self.min_visible * np.minimum((boxes[:, 2:] - boxes[:, :2]).prod(1), self.crop**2)
        return clipped, (visible >= least) & (visible > 0)

    def _around(self, box: np.ndarray, resized_hw: tuple[int, int], generator: np.random.Generator) -> tuple[int, int]:
        """Corner (top, left) of a crop that holds the whole box, or of one within it where it is longer."""
        corner = []
        for low, high, length in zip(box[[1, 0]], box[[3, 2]], resized_hw, strict=True):
            first, last = sorted((low, high - self.crop))
            start = round(generator.uniform(np.ceil(first), max(np.floor(last), np.ceil(first))))
            corner.append(min(max(start, 0), length - self.crop))
        return corner[0], corner[1]


def _scaled(boxes: np.ndarray, image: np.ndarray, resized_hw: tuple[int, int]) -> np.ndarray:
    """(G, 4) float64: the boxes once the image has another size, per axis exact."""
    y, x = (resized / length for resized, length in zip(resized_hw, image.shape[:2], strict=True))
    return boxes.astype(np.float64).reshape(-1, 4) * (x, y, x, y)
