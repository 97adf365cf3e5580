"""The data set of the detectors: annotations in arrays, images decoded on demand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from resdet.datasets.annotations import Annotations, known_sizes
from resdet.datasets.images import read_image
from resdet.errors import InputError
from resdet.structures import Target

Transform = Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""(image, boxes, seed) → (image, boxes, kept rows), as :class:`resdet.datasets.transforms.Augmentation`."""


class DetectionDataset(Dataset):
    """Images and targets of an :class:`Annotations`.

    Args:
        annotations: what a reader returned.
        transform: augmentation; None for evaluation.

    Raises:
        InputError: there are no images.
    """

    def __init__(self, annotations: Annotations, *, transform: Transform | None = None) -> None:
        if not len(annotations):
            raise InputError(annotations.source, found="an empty data set", needed="at least one image")
        self.annotations = annotations
        self.transform = transform
        self.hw = known_sizes(annotations.hw, annotations.image_root, annotations.files)
        """(n, 2) int32 image sizes, for aspect groups; from the headers where the annotation file did not say."""

    @property
    def classes(self) -> tuple[str, ...]:
        """K names; index = label."""
        return self.annotations.classes

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, Target]:
        """Decode and augment one image.

        Args:
            key: index, or (index, seed of the augmentation); an index alone takes the seed from torch's generator.

        Returns:
            The image, uint8 RGB (3, H, W), and its target; boxes in the sample frame.

        Raises:
            InputError: the image does not decode, or its size is not the annotated one.
        """
        index, seed = key if isinstance(key, tuple) else (key, None)
        image, rows = self._read(index), self.annotations.rows(index)
        boxes, labels, ignore = (
            array[rows] for array in (self.annotations.boxes, self.annotations.labels, self.annotations.ignore)
        )
        original_hw = image.shape[:2]
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
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))), target

    def _read(self, index: int) -> np.ndarray:
        """The pixels that the boxes were drawn on: as displayed, or as stored if only that has the annotated size."""
        path = self.annotations.path(index)
        image = read_image(path)
        annotated = tuple(self.annotations.hw[index].tolist())
        if 0 in annotated or image.shape[:2] == annotated:
            return image
        stored = read_image(path, rotate=False)
        if stored.shape[:2] == annotated:
            return stored
        found, needed = (f"{h} x {w} pixels (height x width)" for h, w in (image.shape[:2], annotated))
        raise InputError(f"image {path}", found=found, needed=f"{needed}, as {self.annotations.source} says")
