"""The training view of today's ImageNet recipes: a random part of the image, a random policy of colour and geometry.

The parts are torchvision's; its own recipe with them takes ResNet-50 from 76.1% to 80.9% top-1 (its IMAGENET1K_V2
weights), together with mixup, CutMix, label smoothing, averaged weights and 600 epochs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

from resdet.datasets.folder import FolderDataset
from resdet.errors import InputError, nearest

POLICIES = {"none": v2.Identity, "rand": v2.RandAugment, "trivial": v2.TrivialAugmentWide}
ERASED = (124, 116, 104)
"""ImageNet's mean colour, which is zero once the mean is subtracted."""


@dataclass(frozen=True)
class ModernView:
    """Random resized crop, flip, RandAugment or TrivialAugment, random erasing.

    Args:
        crop: side of the view.
        least_area: the crop covers between this share of the image and all of it.
        policy: ``"rand"`` (Cubuk 2020, torchvision's defaults), ``"trivial"`` (Müller 2021, wide) or ``"none"``.
        erase: probability that a rectangle is erased (Zhong 2020).
        flip: probability of the mirror image.
    """

    crop: int = 176
    least_area: float = 0.08
    policy: str = "trivial"
    erase: float = 0.1
    flip: float = 0.5

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise InputError("ModernView: policy", found=repr(self.policy), needed=nearest(self.policy, POLICIES))
        if not 0 < self.least_area <= 1 or not 0 <= self.erase <= 1 or not 0 <= self.flip <= 1 or self.crop < 1:
            found = f"crop = {self.crop}, least_area = {self.least_area}, erase = {self.erase}, flip = {self.flip}"
            raise InputError("ModernView", found=found, needed="a side of 1 or more, and shares in (0, 1] and [0, 1]")

    def __call__(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """(H, W, 3) uint8 RGB to (crop, crop, 3) uint8 RGB."""
        with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's own generator
            torch.manual_seed(int(generator.integers(2**62)))
            view = self._transform(Image.fromarray(image))
        return view.permute(1, 2, 0).numpy()

    @cached_property
    def _transform(self) -> v2.Compose:
        return v2.Compose(
            [
                v2.RandomResizedCrop(self.crop, scale=(self.least_area, 1.0), antialias=True),
                v2.RandomHorizontalFlip(self.flip),
                POLICIES[self.policy](),
                v2.PILToTensor(),
                v2.RandomErasing(self.erase, value=list(ERASED)),
            ]
        )


def training_folder_modern(
    *,
    root: str,
    split: str = "train",
    crop: int = 176,
    least_area: float = 0.08,
    policy: str = "trivial",
    erase: float = 0.1,
    flip: float = 0.5,
) -> FolderDataset:
    """A folder per class, seen through :class:`ModernView`."""
    view = ModernView(crop=crop, least_area=least_area, policy=policy, erase=erase, flip=flip)
    return FolderDataset(root, split, view=view)
