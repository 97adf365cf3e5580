"""Views of an image for classification: the paper's training augmentation and its three ways of testing (section 3.4).

A view is a function ``(image, generator) -> view`` of uint8 RGB arrays, ``(H, W, 3)`` to ``(crop, crop, 3)``. All its
chance comes from the generator. Views leave as uint8; :class:`resdet.classification.Classifier` normalises them.

For testing a view may also be several: an array of crops, or a list of whole images of different sizes. The classifier
averages what the net says of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from resdet.errors import InputError

View = Callable[[np.ndarray, np.random.Generator], np.ndarray | list[np.ndarray]]

# Eigenvalues and eigenvectors (columns) of the covariance of ImageNet's RGB values in [0, 1]. AlexNet (section 4.1)
# gives the method without the numbers; these are the ones the public ResNet trainings use, from fb.resnet.torch.
# As there, a shift is eigenvalue x alpha on the [0, 1] scale.
EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
EIGENVECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


@dataclass(frozen=True)
class PaperView:
    """Random scale, random crop, horizontal flip and AlexNet's colour shift.

    Args:
        crop: side of the view.
        shorter_side: least and largest shorter side (both included) the whole image is scaled to.
        flip: probability of the mirror image.
        colour_std: standard deviation of AlexNet's alpha; 0 leaves the colours alone.
    """

    crop: int = 224
    shorter_side: tuple[int, int] = (256, 480)
    flip: float = 0.5
    colour_std: float = 0.1

    def __post_init__(self) -> None:
        low, high = self.shorter_side
        _check_sides("PaperView", self.crop, low)
        if high < low:
            raise InputError("PaperView", found=f"shorter_side = ({low}, {high})", needed="the smaller one first")
        if not 0 <= self.flip <= 1:
            raise InputError("PaperView", found=f"flip = {self.flip}", needed="a probability in [0, 1]")

    def __call__(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """(H, W, 3) uint8 RGB to (crop, crop, 3) uint8 RGB."""
        side = int(generator.integers(self.shorter_side[0], self.shorter_side[1] + 1))
        h, w = resized_hw = scaled_hw(image.shape[:2], side)
        top, left = (int(generator.integers(room + 1)) for room in (h - self.crop, w - self.crop))
        view = crop_of_resized(image, resized_hw, top_left=(top, left), crop=self.crop)
        if generator.random() < self.flip:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.colour_std:
            view = shift_colours(view, generator.normal(0.0, self.colour_std, size=3))
        return np.array(view)


@dataclass(frozen=True)
class CenterView:
    """The centre of the image at one scale, with torchvision's rounding: ``Resize(shorter_side), CenterCrop(crop)``.

    Args:
        crop: side of the view.
        shorter_side: the shorter side the whole image is scaled to.
    """

    crop: int = 224
    shorter_side: int = 256

    def __post_init__(self) -> None:
        _check_sides("CenterView", self.crop, self.shorter_side)

    def __call__(self, image: np.ndarray, generator: np.random.Generator | None = None) -> np.ndarray:
        """(H, W, 3) uint8 RGB to (crop, crop, 3) uint8 RGB; the generator is not used."""
        h, w = resized_hw = scaled_hw(image.shape[:2], self.shorter_side)
        top, left = round((h - self.crop) / 2), round((w - self.crop) / 2)
        return np.array(crop_of_resized(image, resized_hw, top_left=(top, left), crop=self.crop))


@dataclass(frozen=True)
class TenCropView:
    """The standard 10 crops (AlexNet, section 4.1): four corners and the centre, and the same of the mirror image.

    Places and order are those of torchvision's ``Resize(shorter_side), TenCrop(crop)``.

    Args:
        crop: side of each view.
        shorter_side: the shorter side the whole image is scaled to.
    """

    crop: int = 224
    shorter_side: int = 256

    def __post_init__(self) -> None:
        _check_sides("TenCropView", self.crop, self.shorter_side)

    def __call__(self, image: np.ndarray, generator: np.random.Generator | None = None) -> np.ndarray:
        """(H, W, 3) uint8 RGB to (10, crop, crop, 3) uint8 RGB; the generator is not used."""
        image = scaled(image, self.shorter_side)
        bottom, right = (length - self.crop for length in image.shape[:2])
        corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), (round(bottom / 2), round(right / 2))]
        return np.stack(
            [side[y : y + self.crop, x : x + self.crop] for side in (image, image[:, ::-1]) for y, x in corners]
        )


@dataclass(frozen=True)
class WholeView:
    """The whole image at several scales, for a net in its fully convolutional form.

    Args:
        sides: the shorter sides, rising; the paper's five are the default.
        crop: side of the views in training, the least that a side may be.
        flip: each scale also mirrored, right after it (VGG, section 3.2).
    """

    sides: tuple[int, ...] = (224, 256, 384, 480, 640)
    crop: int = 224
    flip: bool = True

    def __post_init__(self) -> None:
        if not self.sides or any(low >= high for low, high in zip(self.sides, self.sides[1:], strict=False)):
            raise InputError("WholeView", found=f"sides = {self.sides}", needed="one or more sides, each once, rising")
        _check_sides("WholeView", self.crop, self.sides[0])

    def __call__(self, image: np.ndarray, generator: np.random.Generator | None = None) -> list[np.ndarray]:
        """(H, W, 3) uint8 RGB to one (h, w, 3) uint8 RGB for each side, or two; the generator is not used."""
        images = [scaled(image, side) for side in self.sides]
        return [view for one in images for view in ((one, one[:, ::-1].copy()) if self.flip else (one,))]


def to_tensor(view: np.ndarray | list[np.ndarray]) -> Tensor | list[Tensor]:
    """uint8 RGB with channels last to channels first: (S, S, 3), (V, S, S, 3), or a list of V (h, w, 3)."""
    if isinstance(view, list):
        return [to_tensor(one) for one in view]
    return torch.from_numpy(view).movedim(-1, -3).contiguous()


def collate_views(samples: Sequence[tuple]) -> Sequence:
    """A batch for :meth:`resdet.classification.classifier.Classifier.predict`.

    Args:
        samples: N pairs of view and label; a view is a tensor, or a list of V tensors of any sizes.

    Returns:
        The views, stacked where they are tensors, else as N lists; and (N,) labels.
    """
    labels = torch.tensor([label for _, label in samples])
    if isinstance(samples[0][0], Tensor):
        return [torch.stack([view for view, _ in samples]).contiguous(), labels]
    return [[views for views, _ in samples], labels]


def scaled_hw(hw: tuple[int, int], shorter_side: int) -> tuple[int, int]:
    """Size once the shorter side has the given length; the longer one is rounded down, as torchvision does."""
    h, w = hw
    return (shorter_side, shorter_side * w // h) if h <= w else (shorter_side * h // w, shorter_side)


def scaled(image: np.ndarray, shorter_side: int) -> np.ndarray:
    """The whole (H, W, 3) uint8 image with a shorter side of the given length."""
    h, w = scaled_hw(image.shape[:2], shorter_side)
    return np.array(_resize(Image.fromarray(image), (h, w), box=(0, 0, image.shape[1], image.shape[0])))


def crop_of_resized(
    image: np.ndarray, resized_hw: tuple[int, int], *, top_left: tuple[int, int], crop: int
) -> Image.Image:
    """The crop that resizing the whole image first would give, at the cost of the crop alone.

    The crop's box is carried back to the source and only that region, with a margin as wide as the antialiasing filter
    reaches, is touched.

    Args:
        image: (H, W, 3) uint8 RGB.
        resized_hw: size the whole image is thought to be resized to (bilinear, antialiased).
        top_left: corner of the crop in the resized image.
        crop: side of the crop.
    """
    region, box = [], []
    for length, resized, start in zip(image.shape[:2], resized_hw, top_left, strict=True):
        step = length / resized
        low, high = start * step, (start + crop) * step
        reach = int(max(step, 1.0)) + 2  # a triangle filter reaches one step, or one pixel when enlarging
        first = max(int(low) - reach, 0)
        region.append(slice(first, min(int(high) + reach, length)))
        box.append((low - first, min(high, length) - first))
    (y1, y2), (x1, x2) = box
    source = Image.fromarray(np.ascontiguousarray(image[region[0], region[1]]))
    return _resize(source, (crop, crop), box=(x1, y1, x2, y2))


def shift_colours(image: Image.Image, alpha: np.ndarray) -> Image.Image:
    """Add one colour to every pixel, along the principal components of ImageNet's colours (AlexNet, section 4.1).

    Args:
        image: RGB.
        alpha: (3,) multiples of the eigenvalues.
    """
    shift = 255.0 * EIGENVECTORS @ (EIGENVALUES * alpha)
    table = np.clip(np.rint(np.arange(256) + shift[:, None]), 0, 255).astype(np.uint8)
    return image.point(table.ravel().tolist())


def _resize(image: Image.Image, hw: tuple[int, int], *, box: tuple[float, float, float, float]) -> Image.Image:
    # From six-fold reductions on, whole pixels are averaged first: a third of the time, within a grey level or two.
    return image.resize((hw[1], hw[0]), Image.Resampling.BILINEAR, box=box, reducing_gap=3.0)


def _check_sides(where: str, crop: int, shorter_side: int) -> None:
    if not 1 <= crop <= shorter_side:
        raise InputError(
            where, found=f"crop = {crop}, shorter side = {shorter_side}", needed="1 <= crop <= shorter side"
        )
