"""Data that live on the device, and their augmentation there: no worker processes, no copying of images.

A small set such as CIFAR fits in the device's memory whole (150 MB). A batch is then a gather by index, and pad, crop
and flip (section 4.2 of the paper) are that same gather with shifted and mirrored coordinates: a few kernels for the
whole batch, none of which the host waits for. All chance is a hash of the keys (index, seed) that
:class:`resdet.datasets.loading.TrainBatches` gives, so that every split into processes and every resumed run sees the
same images. It is drawn where the keys are, on the host: for a hundred small numbers that costs less than the launches
of kernels would, and one copy carries index and choice to the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from resdet.datasets.cifar import ArrayData, read_cifar
from resdet.datasets.loading import EvaluationShare, TrainBatches
from resdet.errors import InputError

BITS32 = 0xFFFFFFFF
GOLDEN = 0x9E3779B9
"""2**32 divided by the golden ratio: the step between the counters of a key's draws, as in Weyl sequences."""


class Augmentation(Protocol):
    """What a set in memory is seen through, for a whole batch at once."""

    def choose(self, index: Tensor, seed: Tensor) -> Tensor:
        """(k, N) int64, what to do to each image: a pure function of its key, (N,) int64 index and seed."""

    def __call__(self, images: Tensor, index: Tensor, choice: Tensor, *, fill: Tensor) -> Tensor:
        """(N, C, S, S') of (n, C, H, W) the whole set, (N,) which of them, the choice, and (C,) the mean colour."""


@dataclass(frozen=True)
class CropFlip:
    """The paper's augmentation: pad every side, crop the old size at random, mirror at random.

    The paper pads the image after its mean is subtracted, so with zeros. Images here are uint8 and lose their mean
    later, so the padding is the mean colour of the set, rounded to whole numbers: at most half a grey level from zero.
    Differs from the paper: its mean has a colour for each pixel, ours one for all.

    Args:
        pad: pixels on each side; there are ``(2 * pad + 1) ** 2`` crops.
        flip: probability of the mirror image.
    """

    pad: int = 4
    flip: float = 0.5

    def __post_init__(self) -> None:
        if self.pad < 0:
            raise InputError("CropFlip", found=f"pad = {self.pad}", needed="0 or more pixels")
        if not 0 <= self.flip <= 1:
            raise InputError("CropFlip", found=f"flip = {self.flip}", needed="a probability in [0, 1]")

    def choose(self, index: Tensor, seed: Tensor) -> Tensor:
        """What to do to each image, a pure function of its key.

        Args:
            index: (N,) int64, which images.
            seed: (N,) int64; the lower 32 bits count.

        Returns:
            (3, N) int64: top and left side of the crop in the padded image, both in [0, 2 * pad], and 1 for mirrored.
        """
        top, left, mirror = draws(index, seed, 3)
        places = 2 * self.pad + 1
        return torch.stack([top % places, left % places, (mirror < round(self.flip * 2**32)).long()])

    def __call__(self, images: Tensor, index: Tensor, choice: Tensor, *, fill: Tensor) -> Tensor:
        """Gather, pad, crop and mirror.

        Args:
            images: (n, C, H, W), the whole set.
            index: (N,) int64, which images.
            choice: (3, N) of :meth:`choose`.
            fill: (C,) the colour of the padding, of the type of ``images``.

        Returns:
            (N, C, H, W).
        """
        channels, height, width = images.shape[1:]
        top, left, mirrored = choice[:, :, None]
        # Where the crop's pixels lie in the image; outside of it lies the padding.
        y = torch.arange(height, device=images.device) + top - self.pad
        x = torch.arange(width, device=images.device) + left - self.pad
        x = torch.where(mirrored > 0, x.flip(1), x)
        inside = ((y >= 0) & (y < height))[:, None, :, None] & ((x >= 0) & (x < width))[:, None, None, :]
        y, x = y.clamp(0, height - 1)[:, None, :, None], x.clamp(0, width - 1)[:, None, None, :]
        channel = torch.arange(channels, device=images.device)[:, None, None]
        return torch.where(inside, images[index[:, None, None, None], channel, y, x], fill[:, None, None])


def draws(index: Tensor, seed: Tensor, count: int) -> Tensor:
    """Random numbers that depend on nothing but their key.

    Args:
        index: (N,) int64.
        seed: (N,) int64.
        count: numbers for each key.

    Returns:
        (count, N) int64, uniform in [0, 2**32).
    """
    key = _mix(_mix(seed & BITS32) + (index & BITS32))
    counter = torch.arange(1, count + 1, device=index.device)[:, None] * GOLDEN
    return _mix(key + counter)


def _mix(x: Tensor) -> Tensor:
    """The 32-bit finaliser of MurmurHash3 (A. Appleby, public domain): each bit of x moves about half of the result's.

    Products beyond 63 bits wrap around, which leaves their lower 32 bits right.
    """
    x = x & BITS32
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & BITS32
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & BITS32
    return x ^ (x >> 16)


class ResidentDataset(Dataset):
    """A set in memory, for :class:`ResidentBatches` or, image by image, for a DataLoader; both give the same images.

    Args:
        data: images and labels.
        augmentation: None: the images as they are.
    """

    resident = True
    """Tells that :class:`ResidentBatches` can take the place of a DataLoader."""

    def __init__(self, data: ArrayData, *, augmentation: Augmentation | None = None) -> None:
        if not len(data):
            raise InputError(data.source, found="no images", needed="at least one image")
        self.data, self.augmentation = data, augmentation
        blocks = data.images.split(1024)  # torch's sum makes a wide copy of all that it is given
        totals = torch.stack([block.sum((0, 2, 3), dtype=torch.int64) for block in blocks]).sum(0)
        self.fill = (totals.double() * data.images.shape[1] / data.images.numel()).round().to(torch.uint8)
        """(3,) the mean colour."""
        self._on: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        """K class names, index = label."""
        return self.data.classes

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, int]:
        """One image, a pure function of the key.

        Args:
            key: index of the image, or (index, augmentation seed); a bare index has the seed 0.

        Returns:
            (3, H, W) uint8 RGB, and the label in [0, K).
        """
        row = key[0] if isinstance(key, tuple) else key
        if not 0 <= row < len(self):
            raise IndexError(f"image {row} of {len(self)}")
        images, labels = self.batch([key], torch.device("cpu"))
        return images[0], int(labels[0])

    def batch(self, keys: Sequence[int] | Sequence[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) uint8 and (N,) int64 on the device, which gets the whole set at its first batch."""
        if device not in self._on:
            self._on[device] = tuple(t.to(device) for t in (self.data.images, self.data.labels, self.fill))
        images, labels, fill = self._on[device]
        index, seed = torch.tensor([key if isinstance(key, tuple) else (key, 0) for key in keys]).T
        rows = index[None]
        if self.augmentation is not None:
            rows = torch.cat([rows, self.augmentation.choose(index, seed)])
        if device.type == "cuda":  # from pinned memory the copy is queued, and the host goes on
            rows = rows.pin_memory().to(device, non_blocking=True)
        index = rows[0]
        if self.augmentation is None:
            return images[index], labels[index]
        return self.augmentation(images, index, rows[1:], fill=fill), labels[index]


class ResidentBatches:
    """Takes the place of a DataLoader: the batches of a sampler, made on the device.

    Args:
        dataset: kept on the device from the first batch on; several ``ResidentBatches`` share it.
        batch_sampler: which images, in which step, on which process.
        device: where batches are made.
    """

    def __init__(
        self, dataset: ResidentDataset, batch_sampler: TrainBatches | EvaluationShare, *, device: torch.device | str
    ) -> None:
        self.dataset, self.batch_sampler, self.device = dataset, batch_sampler, torch.device(device)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(N, 3, H, W) uint8 RGB and (N,) int64 labels, both on the device."""
        for keys in self.batch_sampler:
            yield self.dataset.batch(keys, self.device)

    def __len__(self) -> int:
        """Batches of an evaluation; training has no end."""
        return len(self.batch_sampler)


def training_cifar(
    *, root: str, name: str = "cifar10", split: str = "train", pad: int = 4, flip: float = 0.5
) -> ResidentDataset:
    """CIFAR (:func:`resdet.datasets.cifar.read_cifar`) with the paper's augmentation."""
    return ResidentDataset(read_cifar(root, split=split, name=name), augmentation=CropFlip(pad, flip))


def test_cifar(*, root: str, name: str = "cifar10", split: str = "test") -> ResidentDataset:
    """CIFAR (:func:`resdet.datasets.cifar.read_cifar`) as it is."""
    return ResidentDataset(read_cifar(root, split=split, name=name))
