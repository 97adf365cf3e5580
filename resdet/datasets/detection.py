"""The data set of the detectors: annotations in arrays, images decoded on demand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from resdet.datasets.annotations import Annotations, known_sizes
from resdet.datasets.images import read_reduced
from resdet.errors import InputError
from resdet.structures import Target

Transform = Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""(image, boxes, seed) → (image, boxes, kept rows), as :class:`resdet.datasets.transforms.Augmentation`."""


class DetectionDataset(Dataset):
    """Images and targets of an :class:`Annotations`.

    Args:
        annotations: what a reader returned.
        transform: augmentation; None for evaluation.
        least_side: decode large JPEGs at 1/2, 1/4 or 1/8 where both sides stay this long, the longest shorter side that
            the net asks for. A little smoother than what shrinking them whole gives. None: as they are.

    Raises:
        InputError: there are no images.
    """

    def __init__(
        self, annotations: Annotations, *, transform: Transform | None = None, least_side: int | None = None
    ) -> None:
        if not len(annotations):
            raise InputError(annotations.source, found="an empty data set", needed="at least one image")
        self.annotations = annotations
        self.transform = transform
        self.least_side = least_side
        self.hw = known_sizes(annotations.hw, annotations.image_root, annotations.files)
        """(n, 2) int32 image sizes, for aspect groups; from the headers where the annotation file did not say."""

    @property
    def classes(self) -> tuple[str, ...]:
        """K names; index = label."""
        return self.annotations.classes

    @property
    def left_out(self) -> int:
        """Images that cannot be read and are not here."""
        return self.annotations.left_out

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, Target]:
        """Decode and augment one image.

        Args:
            key: index, or (index, seed of the augmentation); an index alone takes the seed from torch's generator.

        Returns:
            The image, uint8 RGB (3, H, W), channels last in memory, and its target; boxes in the sample frame.

        Raises:
            InputError: the image does not decode, or its size is not the annotated one.
        """
        index, seed = key if isinstance(key, tuple) else (key, None)
        (image, original_hw), rows = self._read(index), self.annotations.rows(index)
        boxes, labels, ignore = (
            array[rows] for array in (self.annotations.boxes, self.annotations.labels, self.annotations.ignore)
        )
        if image.shape[:2] != original_hw:
            ratio = np.divide(image.shape[1::-1], original_hw[::-1])  # not quite the same of x and y: sides are rounded
            boxes = (boxes * np.tile(ratio, 2)).astype(np.float32)
        if self.transform is not None:
            seed = int(torch.randint(2**31, ())) if seed is None else seed
            image, boxes, kept = self.transform(image, boxes, seed)
            labels, ignore = labels[kept], ignore[kept]
        target = Target(
            boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            labels=torch.tensor(labels, dtype=torch.int64),
            ignore=torch.tensor(ignore, dtype=torch.bool),
            image_id=int(self.annotations.image_ids[index]),
            original_hw=original_hw,
        )
        return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1), target

    def _read(self, index: int) -> tuple[np.ndarray, tuple[int, int]]:
        """The pixels that the boxes were drawn on, and the size they had then.

        Upright, or as stored if only that has the annotated size.
        """
        path = self.annotations.path(index)
        annotated = tuple(self.annotations.hw[index].tolist())
        image, hw = read_reduced(path, self.least_side)
        if 0 in annotated or hw == annotated:
            return image, hw
        stored, stored_hw = read_reduced(path, self.least_side, rotate=False)
        if stored_hw == annotated:
            return stored, stored_hw
        found, needed = (f"{h} x {w} pixels (height x width)" for h, w in (hw, annotated))
        raise InputError(f"image {path}", found=found, needed=f"{needed}, as {self.annotations.source} says")
