"""Folders of small images in memory, such as ImageNet at 32x32 (Chrabaszcz 2017): decoded once, cut on the device.

A hundred thousand images of 32x32 are 300 MB. Reading and decoding them anew in every epoch costs more than a small net
does, so they are kept whole (:mod:`resdet.datasets.resident`), and the random resized crop of the ImageNet recipes is
one interpolation for the whole batch.
"""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from resdet.cpu.threads import cpus
from resdet.datasets.cifar import ArrayData
from resdet.datasets.folder import FolderDataset, FolderIndex
from resdet.datasets.resident import ResidentDataset, draws
from resdet.datasets.sending import Sending
from resdet.datasets.views import CenterView, collate_views
from resdet.errors import InputError
from resdet.files import keep_arrays, kept_arrays, kept_path

ASPECT = 4 / 3
"""Widest crop, width by height; the tallest is its inverse (Szegedy 2015)."""


@dataclass(frozen=True)
class ResizedCrop:
    """A random part of the image, enlarged, mirrored at random: the view of the ImageNet recipes (Szegedy 2015).

    As torchvision's ``RandomResizedCrop`` and ``RandomHorizontalFlip``, for a batch at once, but for two things: a crop
    that would not fit is cut to the image instead of drawn again, and there is no antialiasing, since crops are never
    larger than the view.

    Args:
        crop: side of the view, not less than that of the images.
        least_area: the crop covers between this share of the image and all of it.
        flip: probability of the mirror image.
    """

    crop: int = 64
    least_area: float = 0.35
    flip: float = 0.5

    def __post_init__(self) -> None:
        if self.crop < 1 or not 0 < self.least_area <= 1 or not 0 <= self.flip <= 1:
            found = f"crop = {self.crop}, least_area = {self.least_area}, flip = {self.flip}"
            raise InputError("ResizedCrop", found=found, needed="a side of 1 or more, and shares in (0, 1] and [0, 1]")

    def choose(self, index: Tensor, seed: Tensor) -> Tensor:
        """(5, N) int64 in [0, 2**32): what area, aspect, top, left and mirroring are made of, from each key alone."""
        return draws(index, seed, 5)

    def __call__(self, images: Tensor, index: Tensor, choice: Tensor, *, fill: Tensor) -> Tensor:
        """Crop, enlarge and mirror.

        Args:
            images: (n, C, H, W) uint8, the whole set.
            index: (N,) int64, which images.
            choice: (5, N) of :meth:`choose`.
            fill: not used: no crop leaves its image.

        Returns:
            (N, C, crop, crop) uint8.
        """
        side_y, side_x = images.shape[-2:]
        area, aspect, top, left, mirror = choice.double() / 2**32
        area = (self.least_area + area * (1 - self.least_area)) * side_y * side_x
        aspect = ((2 * aspect - 1) * math.log(ASPECT)).exp()
        height = (area / aspect).sqrt().round().clamp(1, side_y)
        width = (area * aspect).sqrt().round().clamp(1, side_x)
        y = self._places((top * (side_y - height + 1)).floor(), height, side_y)
        x = self._places((left * (side_x - width + 1)).floor(), width, side_x)
        x = torch.where((mirror < self.flip)[:, None], x.flip(1), x)
        grid = torch.stack([x[:, None, :].expand(-1, self.crop, -1), y[:, :, None].expand(-1, -1, self.crop)], 3)
        views = F.grid_sample(images[index].float(), grid.float(), align_corners=False, padding_mode="border")
        return views.round_().to(images.dtype)

    def _places(self, start: Tensor, length: Tensor, side: int) -> Tensor:
        """(N, crop) where the views' pixels lie on one axis, -1 to 1 over the image, of (N,) starts and lengths."""
        cells = (torch.arange(self.crop, device=start.device) + 0.5) / self.crop
        # Of the crop; beyond the centres of its outer pixels stands their colour.
        pixels = cells * length[:, None] - 0.5
        pixels = start[:, None] + torch.minimum(pixels.clamp(min=0), length[:, None] - 1)
        return (2 * pixels + 1) / side - 1


def read_small_images(root: str | Path, split: str, *, side: int, shorter_side: int | None = None) -> ArrayData:
    """The images of ``root/split/<class>/``, decoded, scaled and cut to one size.

    What was decoded is kept in the user's cache (:func:`resdet.files.cache_folder`) and read from there as long as the
    files have the same names, sizes and times.

    Args:
        root: the data set, such as ``data/imagenet32``.
        split: ``"train"`` or ``"val"``.
        side: of the images in memory.
        shorter_side: what the shorter side is scaled to before the centre is cut out; None: ``side``.

    Raises:
        InputError: as :func:`resdet.datasets.folder.read_folder`; a file does not decode.
    """
    data = FolderDataset(root, split, view=CenterView(crop=side, shorter_side=shorter_side or side))
    path, fingerprint = kept_path(root, f"{split}.{data.view.shorter_side}.{side}"), _fingerprint(data.index)
    kept = kept_arrays(path, fingerprint)
    if kept is None:
        workers = min(8, cpus()) if len(data) > 5_000 else 0
        loader = DataLoader(data, batch_size=256, num_workers=workers, collate_fn=Sending(collate_views))
        kept = {"images": torch.cat([images for images, _ in loader]).numpy()}
        keep_arrays(path, fingerprint, kept)
    labels = torch.from_numpy(data.index.labels)
    return ArrayData(torch.from_numpy(kept["images"]), labels, data.classes, data.index.folder)


def _fingerprint(index: FolderIndex) -> str:
    digest = hashlib.sha256()
    for name in index.files:
        stat = os.stat(os.path.join(index.folder, name))
        digest.update(f"{name} {stat.st_size} {stat.st_mtime_ns}\n".encode("utf8", "surrogateescape"))
    return digest.hexdigest()


def training_small_images(
    *, root: str, split: str = "train", side: int = 32, crop: int = 64, least_area: float = 0.35, flip: float = 0.5
) -> ResidentDataset:
    """A folder per class of small images, in memory, seen through :class:`ResizedCrop`.

    Raises:
        InputError: images larger than the view, or as :func:`read_small_images`.
    """
    if side > crop:
        needed = "side at most crop; training_folder and training_folder_modern take larger images"
        raise InputError("training_small_images", found=f"side = {side}, crop = {crop}", needed=needed)
    augmentation = ResizedCrop(crop, least_area, flip)
    return ResidentDataset(read_small_images(root, split, side=side), augmentation=augmentation)


def test_small_images(*, root: str, split: str = "val", crop: int = 64, shorter_side: int = 64) -> ResidentDataset:
    """A folder per class of small images, in memory, at the size of the test: the pixels of ``test_folder``."""
    return ResidentDataset(read_small_images(root, split, side=crop, shorter_side=shorter_side))
