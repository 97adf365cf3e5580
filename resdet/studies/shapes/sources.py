"""The embedded sets as configs name them."""

from __future__ import annotations

from pathlib import Path

from resdet.datasets.annotations import Annotations
from resdet.datasets.coco import read_coco
from resdet.datasets.folder import FolderDataset
from resdet.datasets.imagenet_loc import read_imagenet_loc
from resdet.datasets.sources import test_folder, training_folder
from resdet.studies.shapes.localization import write_shapes_loc
from resdet.studies.shapes.world import write_shapes


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


def test_crops(
    *,
    root: str = "data/shapes",
    crop: int = 56,
    shorter_side: int = 64,
    crops: int = 1,
    dense: int | tuple[int, ...] = (),
    flip: bool = True,
) -> FolderDataset:
    """The validation crops of the embedded set."""
    folder = shapes_crops(root=root)
    return test_folder(root=folder, crop=crop, shorter_side=shorter_side, crops=crops, dense=dense, flip=flip)


def shapes_loc(*, split: str, root: str = "data/shapes_loc", classes: tuple[str, ...] | None = None) -> Annotations:
    """``"train"`` or ``"val"`` of the embedded set for localization, written first where it is missing."""
    return read_imagenet_loc(root=write_shapes_loc(root), split=split, classes=classes)


def training_shapes_loc(
    *, root: str = "data/shapes_loc", crop: int = 112, shorter_side: tuple[int, int] = (128, 192)
) -> FolderDataset:
    """The training images of that set, for classification."""
    return training_folder(root=_loc_images(root), crop=crop, shorter_side=shorter_side)


def test_shapes_loc(
    *,
    root: str = "data/shapes_loc",
    crop: int = 112,
    shorter_side: int = 128,
    crops: int = 1,
    dense: int | tuple[int, ...] = (),
    flip: bool = True,
) -> FolderDataset:
    """The validation images of that set, for classification."""
    folder = _loc_images(root)
    return test_folder(root=folder, crop=crop, shorter_side=shorter_side, crops=crops, dense=dense, flip=flip)


def _loc_images(root: str) -> str:
    return str(write_shapes_loc(root) / "Data" / "CLS-LOC")
