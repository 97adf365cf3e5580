"""From uint8 images of any size to one normalised, padded batch, on the network's device."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resdet import boxes as box_ops
from resdet.errors import InputError, nearest
from resdet.structures import Detections, ImageBatch, Target

RGB_MEAN = (123.675, 116.28, 103.53)
"""ImageNet's channel means on the 0-255 scale, as torchvision and timm train with."""
RGB_STD = (58.395, 57.12, 57.375)
Rounding = Literal["torchvision", "mmdetection", "detectron2"]
"""Who rounds the resized sides so; see :func:`resized`."""


class Preprocess(nn.Module):
    """Resize to a shorter side, normalise, pad.

    Args:
        shorter_side: target of the shorter side in pixels; of several, training draws one for each batch and testing
            uses the last.
        longer_side: bound of the longer side; it wins over the shorter one.
        antialias: blur before shrinking.
        rounding: of the resized sides.
        mean: per channel, RGB, on the 0-255 scale.
        std: likewise.
        multiple: the padded batch is a multiple of this, so that C2 .. C5 have whole cells (P6 rounds up).
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        shorter_side: int | Sequence[int],
        longer_side: int,
        *,
        antialias: bool = False,
        rounding: Rounding = "torchvision",
        mean: Sequence[float] = RGB_MEAN,
        std: Sequence[float] = RGB_STD,
        multiple: int = 32,
    ) -> None:
        super().__init__()
        self.shorter_side = (shorter_side,) if isinstance(shorter_side, int) else tuple(shorter_side)
        if not self.shorter_side or min(*self.shorter_side, longer_side, multiple) < 1:
            raise InputError(
                "input size",
                found=f"shorter_side={shorter_side}, longer_side={longer_side}, multiple={multiple}",
                needed="pixels, 1 or more",
            )
        if rounding not in get_args(Rounding):
            raise InputError("rounding", found=repr(rounding), needed=nearest(str(rounding), get_args(Rounding)))
        self.longer_side, self.antialias, self.multiple, self.rounding = longer_side, antialias, multiple, rounding
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    @property
    def test_side(self) -> int:
        """The shorter side at test."""
        return self.shorter_side[-1]

    def size(self, hw: tuple[int, int], shorter_side: int, longer_side: float | None = None) -> tuple[int, int]:
        """Size that an image of size ``hw`` is resized to, with the net's bound of the longer side or another."""
        return resized(hw, shorter_side, longer_side or self.longer_side, self.rounding)

    def forward(self, images: Sequence[Tensor], shorter_side: int | None = None) -> ImageBatch:
        """Images, each uint8 (3, H, W) RGB of its own size, as one batch.

        Args:
            images: of any sizes.
            shorter_side: another than that of the net; the bound of the longer side grows or shrinks with it.

        Raises:
            InputError: for anything that is not such an image.
        """
        longer_side = None
        if shorter_side is not None:
            side, longer_side = shorter_side, self.longer_side * shorter_side / self.test_side
        elif self.training and len(self.shorter_side) > 1:
            side = self.shorter_side[int(torch.randint(len(self.shorter_side), ()))]
        else:
            side = self.test_side
        ready = []
        for image in images:
            if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[0] != 3 or 0 in image.shape:
                raise InputError(
                    "image", found=f"{image.dtype} of shape {tuple(image.shape)}", needed="uint8 RGB (3, H, W), 0-255"
                )
            pixels = (image.to(self.mean.device, non_blocking=True).float() - self.mean) / self.std
            size = self.size((image.shape[1], image.shape[2]), side, longer_side)
            ready.append(F.interpolate(pixels[None], size, mode="bilinear", antialias=self.antialias)[0])
        height, width = (-(-max(r.shape[axis] for r in ready) // self.multiple) * self.multiple for axis in (1, 2))
        batch = ready[0].new_zeros((len(ready), 3, height, width)).contiguous(memory_format=torch.channels_last)
        for place, pixels in zip(batch, ready, strict=True):
            place[:, : pixels.shape[1], : pixels.shape[2]] = pixels
        sizes = ([(i.shape[1], i.shape[2]) for i in some] for some in (ready, images))
        return ImageBatch(batch, *sizes)

    def move_targets(self, targets: Sequence[Target], batch: ImageBatch) -> list[Target]:
        """Targets of the sample frame in the input frame."""
        frames = zip(targets, batch.sample_hw, batch.input_hw, strict=True)
        device = self.mean.device
        return [
            t._replace(
                boxes=box_ops.scale(t.boxes.to(device, non_blocking=True), sample, resized),
                labels=t.labels.to(device, non_blocking=True),
                ignore=t.ignore.to(device, non_blocking=True),
            )
            for t, sample, resized in frames
        ]


def resized(hw: tuple[int, int], shorter_side: float, longer_side: float, rounding: Rounding) -> tuple[int, int]:
    """Size of an image whose shorter side becomes ``shorter_side``, unless the longer one would pass ``longer_side``.

    torchvision cuts the sides, the others round them. mmdetection multiplies both by one factor; detectron2 scales to
    the shorter side first and then down to the bound, which rounds some exact halves the other way.

    Args:
        hw: height and width.
        shorter_side: wanted, in pixels.
        longer_side: bound.
        rounding: whose.
    """
    factor = min(shorter_side / min(hw), longer_side / max(hw))
    sides = [side * factor for side in hw]
    if rounding == "detectron2":
        sides = [shorter_side if side == min(hw) else side * (shorter_side / min(hw)) for side in hw]
        if max(sides) > longer_side:
            sides = [side * (longer_side / max(sides)) for side in sides]
    height, width = (max(1, math.floor(side if rounding == "torchvision" else side + 0.5)) for side in sides)
    return height, width


def one_size_at_a_time(
    images: Sequence[Tensor], predict: Callable[[Sequence[Tensor]], list[Detections]]
) -> list[Detections]:
    """Predictions of images of any sizes, in batches of one size each.

    Beside a larger image one would be padded, and the padding moves features near the border: by measure up to 13
    pixels and 0.23 of score. So what is found in an image does not hang on what it comes with.

    Args:
        images: (3, H, W) each.
        predict: of images of one size.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, image in enumerate(images):
        groups.setdefault(tuple(image.shape), []).append(place)
    found: dict[int, Detections] = {}
    for places in groups.values():
        found |= zip(places, predict([images[place] for place in places]), strict=True)
    return [found[place] for place in range(len(images))]
