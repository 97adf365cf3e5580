"""ILSVRC's detection set (DET, 200 classes), as the paper uses it: trained on train and val1, tested on val2.

    ILSVRC/Data/DET/{train/...,val}/*.JPEG    Annotations/DET/{train/...,val}/*.xml    ImageSets/DET/*.txt

The halves val1 and val2 of the validation set (R-CNN, section 4.2) are lists that do not come with the data: one image
name a line, such as ``ILSVRC2013_val_00000001``. Coordinates: see :mod:`resdet.datasets.ilsvrc`.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence

import numpy as np

from resdet.datasets.annotations import Annotations, find_images
from resdet.datasets.ilsvrc import annotations_of, ilsvrc_folder, list_path, read_list, read_records
from resdet.errors import InputError, listed
from resdet.files import kept_path

logger = logging.getLogger(__name__)

TASK = "DET"
NUM_CLASSES = 200
PARTS = ("train", "val")


def read_imagenet_det(
    *,
    root: str | os.PathLike[str],
    splits: Sequence[str | os.PathLike[str]] = ("train", "val1"),
    classes: str | os.PathLike[str] | Sequence[str] | None = None,
    negatives: bool = False,
) -> Annotations:
    """Read the union of some lists into arrays; an image that several of them name comes once.

    Lists with a mark (``train_1.txt`` to ``train_200.txt``) tell of each image whether it has objects of one class: 1
    yes, -1 no, 0 only in part. Those with a 1 are read.

    Args:
        root: the folder ILSVRC or the one above it.
        splits: names of lists in ``ImageSets/DET``, as ``train``, ``val1`` and ``train_17``, or paths of lists.
        classes: a file with a wnid and a name on each line, or wnids, in the order of the labels; objects of other
            classes are not read. None: the wnids that occur in the annotation files, sorted; they must be 200.
        negatives: also read the images that have no annotation file or a mark of -1, as images without objects (most of
            them show none of the one class that they were collected against). Else they are counted in a warning.

    Raises:
        InputError: a folder, list or image is missing, a name leads out of the folder, an annotation file is broken, or
            classes are missing.
    """
    folder = ilsvrc_folder(root, TASK)
    image_root, xml_root = os.path.join(folder, "Data", TASK), os.path.join(folder, "Annotations", TASK)
    lists = [list_path(folder, TASK, split) for split in splits]
    source = f"{folder} ({', '.join(map(str, splits))})"
    tree = _Tree(image_root, xml_root)
    names = list(dict.fromkeys(name for path in lists for name in _chosen(path, negatives)))
    places = [tree.place(name) for name in names]
    find_images(image_root, [f"{place}.JPEG" for place in places], source=source, exact=True)  # all
    with_xml = [tree.has_xml(place) for place in places]
    if not all(with_xml) and not negatives:
        missing = [place for place, known in zip(places, with_xml, strict=True) if not known]
        message = "%s: %d of %d images have no annotation file and are left out; first: %s"
        logger.warning(message, source, len(missing), len(places), listed(missing, shown=3))
        places = [place for place, known in zip(places, with_xml, strict=True) if known]
    if not places:
        raise InputError(source, found="no images", needed="at least one image with an annotation file")
    files = [f"{place}.JPEG" for place in places]
    annotated = np.array([tree.has_xml(place) for place in places])
    rows = np.flatnonzero(annotated)
    digest = hashlib.sha256("\n".join(map(str, splits)).encode()).hexdigest()[:8]
    records = read_records(
        [os.path.join(image_root, files[row]) for row in rows],
        [os.path.join(xml_root, f"{places[row]}.xml") for row in rows],
        kept_as=kept_path(folder, f"{TASK}.{digest}"),
    )
    hw = np.zeros((len(files), 2), np.int32)  # DetectionDataset reads the sizes of the others from their headers
    hw[rows] = records.hw
    records = records._replace(hw=hw, rows=rows[records.rows])
    synsets = _synsets(classes, records.names, source)
    matching = records.of_boxes(np.isin(records.names, list(synsets)))
    names = {"classes": list(synsets.values()), "synsets": list(synsets)}
    return annotations_of(matching, files, **names, source=source, root=image_root)


class _Tree:
    """Where the images and annotation files of DET lie, by one listing of each folder."""

    def __init__(self, image_root: str, xml_root: str) -> None:
        self.image_root, self.xml_root = image_root, xml_root
        self.listings: dict[str, set[str]] = {}

    def has(self, path: str) -> bool:
        folder, base = os.path.split(path)
        if folder not in self.listings:
            self.listings[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        return base in self.listings[folder]

    def has_xml(self, place: str) -> bool:
        return self.has(os.path.join(self.xml_root, f"{place}.xml"))

    def place(self, name: str) -> str:
        """``train/<name>`` or ``val/<name>``, or the name itself, whichever there is; the first where none is.

        Raises:
            InputError: the name leads out of the folder.
        """
        if os.path.isabs(name) or ".." in name.split("/"):
            needed = "a name below the folder, without .., as val/ILSVRC2013_val_00000001"
            raise InputError(f"image list of {self.image_root}", found=f"the name {name!r}", needed=needed)
        places = [f"{part}/{name}" for part in PARTS] + [name]
        for place in places:
            if self.has(os.path.join(self.image_root, f"{place}.JPEG")) or self.has_xml(place):
                return place
        return places["_val_" in name]


def _chosen(path: str, negatives: bool) -> list[str]:
    """The names of a list; of one with marks those that are asked for."""
    lines = read_list(path)
    if {rest for _, rest in lines} <= {"1", "0", "-1"}:
        return [name for name, mark in lines if mark == "1" or (negatives and mark == "-1")]
    return [name for name, _ in lines]  # what follows is the number of the line


def _synsets(classes: str | os.PathLike[str] | Sequence[str] | None, found: np.ndarray, source: str) -> dict[str, str]:
    """Wnids and the names to show, in the order of the labels."""
    if classes is None:
        names = sorted(set(found.tolist()))
        if len(names) != NUM_CLASSES:
            raise InputError(
                f"classes of {source}",
                found=f"{len(names)} in its annotation files: {listed(names)}",
                needed=f"{NUM_CLASSES}, or classes=...: a file with a wnid on each line, or a list of them",
            )
        return {name: name for name in names}
    lines = read_list(classes) if isinstance(classes, (str, os.PathLike)) else [(name, name) for name in classes]
    synsets = {wnid: name or wnid for wnid, name in lines}
    if not synsets or len(synsets) < len(lines) or len(set(synsets.values())) < len(synsets):
        raise InputError(f"classes of {source}", found=listed([wnid for wnid, _ in lines]), needed="names, each once")
    if not set(found.tolist()) & synsets.keys():
        seen = listed(sorted(set(found.tolist())))
        raise InputError(f"classes of {source}", found=f"no object of them, but of {seen}", needed="names that occur")
    return synsets
