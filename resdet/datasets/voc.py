"""PASCAL VOC devkits (2007, 2012, their union) and one's own folders of that form.

The only place of the package that subtracts one: VOC counts pixels from 1 and includes the last, so that the continuous
box of ``xmin, ymin, xmax, ymax`` is ``(xmin - 1, ymin - 1, xmax, ymax)``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from resdet.datasets.annotations import Annotations, FileNames, check_boxes, known_sizes
from resdet.errors import InputError, nearest

LAYOUT = "a folder with Annotations/*.xml, JPEGImages/*.jpg and ImageSets/Main/<split>.txt, as VOCdevkit/VOC2007"
EXTENSIONS = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG", ".bmp", ".tif", ".tiff", ".webp")
CORNERS = ("xmin", "ymin", "xmax", "ymax")
LONGEST_NAME = 100
"""Characters of a class name. All names of a data set lie in one array, each as wide as the longest."""


def read_voc(
    splits: Sequence[tuple[str | os.PathLike[str], str]], *, classes: Sequence[str] | None = None, strict: bool = False
) -> Annotations:
    """Read one split of a VOC-form folder, or the union of several, into arrays.

    Args:
        splits: (folder, split) pairs, as ``[("data/VOCdevkit/VOC2007", "trainval"), ("data/VOCdevkit/VOC2012",
            "trainval")]``. Image ids are row numbers in the union, from 0.
        classes: every class name that occurs, in the order of the labels. None: collected from *all* annotation files
            of the folders, whatever their split, and sorted (VOC's 20 are in that order).
        strict: refuse boxes at fault instead of clipping or dropping them (see ``check_boxes``). A box with
            ``xmax <= xmin`` counts as one without width: VOC itself has no one-pixel boxes, stray clicks do that.

    Raises:
        InputError: a folder, split, annotation or image is missing, an XML is broken, or a class name is unknown.
    """
    if not splits:
        raise InputError("VOC data set", found="no splits", needed="pairs of a folder and a split")
    folders = [_Folder(os.fspath(root)) for root, _ in splits]
    names = [(folder, name) for folder, (_, split) in zip(folders, splits, strict=True) for name in folder.names(split)]
    source = ", ".join(f"{os.fspath(root)} ({split})" for root, split in splits)
    if not names:
        raise InputError(source, found="no images in the split", needed="at least one image name")
    parsed = {os.path.join(folder.root, name): folder.parse(name) for folder, name in names}
    if len(parsed) < len(names):
        raise InputError(source, found=f"{len(names) - len(parsed)} images twice", needed="each image once")
    if classes is None:
        found = {name for image in parsed.values() for name in image.labels}
        for folder in {folder.root: folder for folder in folders}.values():
            others = (name for name in folder.annotated if os.path.join(folder.root, name) not in parsed)
            found.update(*(folder.parse(name).labels for name in others))
        classes = sorted(found)  # VOC's own 20 are in this order too
    classes = tuple(classes)
    label_of = {name: label for label, name in enumerate(classes)}
    if len(label_of) < len(classes):
        raise InputError(f"classes of {source}", found=list(classes), needed="names, each once")
    images = list(parsed.values())
    for (folder, name), image in zip(names, images, strict=True):
        for label in image.labels:
            if label not in label_of:
                needed = f"a class of the data set: {nearest(label, classes)}"
                raise InputError(folder.xml(name), found=f"class name {label!r}", needed=needed)
    image_root = os.path.commonpath([os.path.join(folder.root, "JPEGImages") for folder in folders])
    paths = [folder.image(name, image) for (folder, name), image in zip(names, images, strict=True)]
    files = FileNames([os.path.relpath(path, image_root) for path in paths])
    hw = known_sizes(np.array([image.hw for image in images], dtype=np.int32), image_root, files)
    rows = np.repeat(np.arange(len(images)), [len(image.labels) for image in images])
    corners = np.array([box for image in images for box in image.boxes], dtype=np.float64).reshape(-1, 4)
    labels = np.array([label_of[label] for image in images for label in image.labels], dtype=np.int64)
    difficult = np.array([flag for image in images for flag in image.difficult], dtype=bool)

    xyxy = corners - (1, 1, 0, 0)
    with np.errstate(invalid="ignore"):
        pointlike = (corners[:, 2:] <= corners[:, :2]).any(1)
    xyxy[pointlike, 2:] = xyxy[pointlike, :2]

    def describe(row: int) -> str:
        number = row - np.searchsorted(rows, rows[row]) + 1
        return f"{files[int(rows[row])]}, object {number}, {corners[row].tolist()} (xmin, ymin, xmax, ymax)"

    boxes, kept = check_boxes(xyxy, hw[rows], describe, source=source, strict=strict)
    return Annotations(
        source=source,
        image_root=image_root,
        classes=classes,
        category_ids=np.arange(1, len(classes) + 1),
        image_ids=np.arange(len(images)),
        files=files,
        hw=hw,
        first=np.searchsorted(rows[kept], np.arange(len(images) + 1)),
        boxes=boxes,
        labels=labels[kept],
        ignore=difficult[kept],
        areas=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
        box_ids=np.arange(1, len(boxes) + 1),
    )


class VocImage(NamedTuple):
    """What one XML says."""

    filename: str
    hw: tuple[int, int]
    """(0, 0) where it does not say."""
    labels: list[str]
    """A class name for each object; boxes and flags likewise."""
    boxes: list[list[float]]
    """xmin, ymin, xmax, ymax as written."""
    difficult: list[bool]


class _Folder:
    """One VOC-form folder with the listings of its parts."""

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)
        for part in ("Annotations", "JPEGImages", os.path.join("ImageSets", "Main")):
            if not os.path.isdir(os.path.join(root, part)):
                raise InputError(f"VOC folder {root}", found=f"no folder {part}", needed=LAYOUT)
        listing = sorted(os.listdir(os.path.join(root, "Annotations")))
        self.annotated = dict.fromkeys(name[:-4] for name in listing if name.endswith(".xml"))
        self.pictures = set(os.listdir(os.path.join(root, "JPEGImages")))

    def xml(self, name: str) -> str:
        return os.path.join(self.root, "Annotations", f"{name}.xml")

    def names(self, split: str) -> list[str]:
        """The image names of a split."""
        folder = os.path.join(self.root, "ImageSets", "Main")
        path = os.path.join(folder, f"{split}.txt")
        if not os.path.isfile(path):
            splits = sorted(name[:-4] for name in os.listdir(folder) if name.endswith(".txt"))
            whole = [name for name in splits if name.rpartition("_")[2] not in splits or "_" not in name]
            needed = f"one of the splits there: {', '.join(whole) or 'none, put one image name per line in a file'}"
            raise InputError(path, found="no such file", needed=needed)
        with open(path, encoding="utf-8") as file:
            lines = [line.strip() for line in file if line.strip()]
        # devkits also have "name flag" lines (per-class lists); a name of one's own may hold blanks
        names = [line if line in self.annotated else line.split()[0] for line in lines]
        for name in names:
            if name not in self.annotated:
                raise InputError(self.xml(name), found="no such file", needed=f"the annotation that {path} names")
        return names

    def image(self, name: str, image: VocImage) -> str:
        """Path of the picture of an annotation: NAME.jpg, the XML's <filename>, or NAME with another extension."""
        for picture in (f"{name}.jpg", image.filename, *(name + extension for extension in EXTENSIONS)):
            if picture in self.pictures:
                return os.path.join(self.root, "JPEGImages", picture)
        wanted = os.path.join(self.root, "JPEGImages", f"{name}.jpg")
        raise InputError(
            wanted, found="no such file", needed=f"the image of {self.xml(name)} ({', '.join(EXTENSIONS)})"
        )

    def parse(self, name: str) -> VocImage:
        return parse_xml(self.xml(name))


def parse_xml(path: str) -> VocImage:
    """Read one annotation file of VOC's form.

    Raises:
        InputError: the file cannot be read, the XML is broken or of an encoding that Python's parser does not know, an
            object has no name, one of over 100 characters, or no four numbers, or the size is none.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise InputError(path, found=f"broken XML: {error}", needed="a complete VOC annotation, in UTF-8") from error
    except OSError as error:
        raise InputError(path, found=error.strerror or error, needed="a VOC annotation") from error
    objects = root.findall("object")
    labels, boxes = [], []
    for number, item in enumerate(objects, 1):
        label, box = (item.findtext("name") or "").strip(), item.find("bndbox")
        try:
            values = [float(box.findtext(side)) for side in CORNERS]
        except (AttributeError, TypeError, ValueError) as error:
            values = [box.findtext(side) for side in CORNERS] if box is not None else "no <bndbox>"
            needed = f"<bndbox> with four numbers: {', '.join(CORNERS)}"
            raise InputError(f"{path}, object {number}", found=values, needed=needed) from error
        if not label:
            raise InputError(f"{path}, object {number}", found="no <name>", needed="the name of its class")
        if len(label) > LONGEST_NAME:
            found = f"a <name> of {len(label)} characters: {label[:20]}..."
            raise InputError(f"{path}, object {number}", found=found, needed=f"{LONGEST_NAME} or fewer")
        labels.append(label)
        boxes.append(values)
    difficult = [(item.findtext("difficult") or "0").strip() not in ("0", "") for item in objects]
    try:
        hw = (int(float(root.findtext("size/height") or 0)), int(float(root.findtext("size/width") or 0)))
    except (ValueError, OverflowError) as error:
        raise InputError(path, found="a <size> that is not a number", needed="height and width") from error
    if not all(0 <= side < 2**31 for side in hw):
        raise InputError(path, found=f"a <size> of height {hw[0]} and width {hw[1]}", needed="pixels, or 0: not known")
    return VocImage((root.findtext("filename") or "").strip(), hw, labels, boxes, difficult)
