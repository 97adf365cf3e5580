"""Data sets as configs name them, besides ``read_coco`` and ``read_voc``: image folders and the embedded set."""

from __future__ import annotations

from pathlib import Path

from resdet.datasets.annotations import Annotations
from resdet.datasets.coco import read_coco
from resdet.datasets.folder import FolderDataset
from resdet.datasets.shapes import write_shapes
from resdet.datasets.views import CenterView, PaperView


def training_folder(
    *,
    root: str,
    split: str = "train",
    crop: int = 224,
    shorter_side: tuple[int, int] = (256, 480),
    flip: float = 0.5,
    colour_std: float = 0.1,
) -> FolderDataset:
    """A folder per class, seen through the paper's training view (:class:`resdet.datasets.views.PaperView`)."""
    view = PaperView(crop=crop, shorter_side=tuple(shorter_side), flip=flip, colour_std=colour_std)
    return FolderDataset(root, split, view=view)


def test_folder(*, root: str, split: str = "val", crop: int = 224, shorter_side: int = 256) -> FolderDataset:
    """A folder per class, seen through the centre view (:class:`resdet.datasets.views.CenterView`)."""
    return FolderDataset(root, split, view=CenterView(crop=crop, shorter_side=shorter_side))


def shapes(*, split: str, root: str = "data/shapes", classes: tuple[str, ...] | None = None) -> Annotations:
    """``"train"`` or ``"val"`` of the embedded set, written first where it is missing."""
    folder = write_shapes(root)
    return read_coco(folder / "annotations" / f"instances_{split}.json", folder / "JPEGImages", classes=classes)


def shapes_crops(*, root: str = "data/shapes") -> str:
    """Folder of the embedded set's crops for classification, written first where it is missing."""
    return str(Path(write_shapes(root)) / "crops")


def training_crops(
    *, root: str = "data/shapes", crop: int = 56, shorter_side: tuple[int, int] = (60, 84)
) -> FolderDataset:
    """The training crops of the embedded set."""
    return training_folder(root=shapes_crops(root=root), crop=crop, shorter_side=shorter_side)


def test_crops(*, root: str = "data/shapes", crop: int = 56, shorter_side: int = 64) -> FolderDataset:
    """The validation crops of the embedded set."""
    return test_folder(root=shapes_crops(root=root), crop=crop, shorter_side=shorter_side)
