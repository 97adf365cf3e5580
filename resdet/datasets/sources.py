"""Image folders as configs name them."""

from __future__ import annotations

from resdet.datasets.folder import FolderDataset
from resdet.datasets.views import CenterView, PaperView, TenCropView, View, WholeView
from resdet.errors import InputError


def training_folder(
    *,
    root: str,
    split: str = "train",
    crop: int = 224,
    shorter_side: tuple[int, int] = (256, 480),
    flip: float = 0.5,
    colour_std: float = 0.1,
    reduce: bool = False,
) -> FolderDataset:
    """A folder per class, seen through the paper's training view (:class:`resdet.datasets.views.PaperView`).

    With ``reduce``, photographs of more than twice the largest shorter side are decoded at a fraction of their size:
    much faster, for pixels that differ a little.
    """
    view = PaperView(crop=crop, shorter_side=tuple(shorter_side), flip=flip, colour_std=colour_std)
    return FolderDataset(root, split, view=view, least_side=max(shorter_side) if reduce else None)


def test_folder(
    *,
    root: str,
    split: str = "val",
    crop: int = 224,
    shorter_side: int = 256,
    crops: int = 1,
    dense: int | tuple[int, ...] = (),
    flip: bool = True,
) -> FolderDataset:
    """A folder per class, seen in one of the paper's three ways of testing (:func:`test_view`)."""
    view = test_view(crop=crop, shorter_side=shorter_side, crops=crops, dense=dense, flip=flip)
    return FolderDataset(root, split, view=view)


def test_view(
    *,
    crop: int = 224,
    shorter_side: int = 256,
    crops: int = 1,
    dense: int | tuple[int, ...] = (),
    flip: bool = True,
) -> View:
    """The view of a test.

    Args:
        crop: side of the crops; with ``dense`` that of the crops in training.
        shorter_side: the scale that crops are cut at.
        crops: 1, the centre, or 10 (:class:`resdet.datasets.views.TenCropView`).
        dense: shorter sides of the whole image, such as (224, 256, 384, 480, 640), in place of crops
            (:class:`resdet.datasets.views.WholeView`).
        flip: whole images also mirrored; 10 crops always are.

    Raises:
        InputError: another number of crops, both kinds together, or sides that do not fit.
    """
    if crops not in (1, 10):
        raise InputError("test data: crops", found=crops, needed="1 (the centre) or 10 (corners, centre, mirrored)")
    sides = (dense,) if isinstance(dense, int) else tuple(dense)
    if sides and crops != 1:
        raise InputError("test data", found=f"crops = {crops} and dense = {sides}", needed="one of them")
    if sides:
        return WholeView(sides=sides, crop=crop, flip=flip)
    return (CenterView if crops == 1 else TenCropView)(crop=crop, shorter_side=shorter_side)
