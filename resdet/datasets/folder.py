"""Classification data as one folder per class: the layout of ILSVRC-2012, and of any image set sorted into folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from resdet.datasets.file_names import FileNames
from resdet.datasets.images import SUFFIXES, read_reduced
from resdet.datasets.views import View, to_tensor
from resdet.errors import InputError, listed


@dataclass(frozen=True)
class FolderIndex:
    """One split of a folder-per-class data set, in arrays that worker processes share."""

    folder: str
    """``root/split``."""
    classes: tuple[str, ...]
    """K sorted folder names; index = label."""
    files: FileNames
    """n names below ``folder``, sorted within each class."""
    labels: np.ndarray
    """(n,) int64 in [0, K)."""

    def __len__(self) -> int:
        return len(self.labels)


def read_folder(root: str | Path, split: str) -> FolderIndex:
    """List the images of ``root/split/<class>/``, at any depth below the class.

    Hidden files and files that are no images are passed over.

    Args:
        root: the data set, such as ``data/imagenet``.
        split: name of the folder below it, such as ``train`` or ``val``.

    Raises:
        InputError: a folder is missing or empty, a class has no image, or ``train`` and ``val`` differ in classes.
    """
    layout = f"{root}/train/<class>/*.JPEG and {root}/val/<class>/*.JPEG: one folder per class (layout of ILSVRC-2012)"
    folder = os.path.join(root, split)
    if not os.path.isdir(folder):
        found = f"only {listed(_folders(root))}" if os.path.isdir(root) else f"no folder {root}"
        raise InputError(folder, found=f"no such folder; {found}", needed=layout)
    classes = tuple(_folders(folder))
    if not classes:
        loose = len(os.listdir(folder))
        raise InputError(folder, found=f"no class folders, {loose} files beside each other", needed=layout)
    for other in {"train", "val"} - {split}:
        sibling = os.path.join(root, other)
        if os.path.isdir(sibling):
            _check_same_classes(folder, classes, sibling, tuple(_folders(sibling)))

    names: list[str] = []
    counts: list[int] = []
    for name in classes:
        images = sorted(_images(folder, name))
        names += images
        counts.append(len(images))
    empty = [name for name, count in zip(classes, counts, strict=True) if not count]
    if empty:
        raise InputError(
            folder,
            found=f"{len(empty)} of {len(classes)} class folders without an image: {listed(empty)}",
            needed=f"at least one image ({' '.join(SUFFIXES)}) in each; {layout}",
        )
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), counts)
    return FolderIndex(folder, classes, FileNames(names), labels)


class FolderDataset(Dataset):
    """Views and labels of one split.

    Args:
        root: the data set, such as ``data/imagenet``.
        split: name of the folder below it, such as ``train`` or ``val``.
        view: what to cut from each image (see :mod:`resdet.datasets.views`).
        least_side: decode large JPEGs at a fraction of their size that leaves both sides so many pixels (see
            :func:`resdet.datasets.images.read_reduced`); None decodes them whole.
    """

    def __init__(self, root: str | Path, split: str, *, view: View, least_side: int | None = None) -> None:
        self.index = read_folder(root, split)
        self.view, self.least_side = view, least_side
        self.left_out = 0

    @property
    def classes(self) -> tuple[str, ...]:
        """K class names, index = label."""
        return self.index.classes

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, int]:
        """One view, a pure function of the key.

        Args:
            key: index of the image, or (index, augmentation seed); a bare index has the seed 0.

        Returns:
            uint8 RGB, (3, S, S) or as :func:`resdet.datasets.views.to_tensor` tells, and the label in [0, K).

        Raises:
            InputError: the file does not decode.
        """
        row, seed = key if isinstance(key, tuple) else (key, 0)
        if not 0 <= row < len(self):
            raise IndexError(f"image {row} of {len(self)}")
        image, _ = read_reduced(os.path.join(self.index.folder, self.index.files[row]), self.least_side)
        view = self.view(image, np.random.default_rng((seed, row)))
        return to_tensor(view), int(self.index.labels[row])


def _folders(path: str | Path) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _images(folder: str, name: str) -> Iterator[str]:
    for path, _, files in os.walk(os.path.join(folder, name)):
        below = os.path.relpath(path, folder)
        for file in files:
            if file.lower().endswith(SUFFIXES) and not file.startswith("."):
                yield os.path.join(below, file)


def _check_same_classes(folder: str, classes: tuple[str, ...], sibling: str, others: tuple[str, ...]) -> None:
    if classes == others:
        return
    only_here, only_there = sorted(set(classes) - set(others)), sorted(set(others) - set(classes))
    raise InputError(
        folder,
        found=f"{len(classes)} classes here and {len(others)} in {sibling}; "
        f"only here: {listed(only_here)}; only there: {listed(only_there)}",
        needed="the same class folders in train and val, since a label is the place in their sorted list",
    )
