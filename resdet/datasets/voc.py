"""PASCAL VOC devkits (2007, 2012, their union) and one's own folders of that form.

The only place of the package that subtracts one: VOC counts pixels from 1 and includes the last, so that the continuous
box of ``xmin, ymin, xmax, ymax`` is ``(xmin - 1, ymin - 1, xmax, ymax)``.
"""

from __future__ import annotations

import codecs
import logging
import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from resdet.datasets.annotations import Annotations, check_boxes, known_sizes
from resdet.datasets.file_names import FileNames
from resdet.datasets.images import SUFFIXES
from resdet.datasets.lenience import is_lenient
from resdet.datasets.voc_xml import VocImage, parse_xml
from resdet.errors import InputError, listed, nearest

logger = logging.getLogger(__name__)
LAYOUT = "a folder with Annotations/*.xml, JPEGImages/*.jpg and ImageSets/Main/<split>.txt, as VOCdevkit/VOC2007"
EVERY = "*"
"""The split of all annotated images."""


def read_voc(
    splits: Sequence[tuple[str | os.PathLike[str], str]], *, classes: Sequence[str] | None = None, strict: bool = False
) -> Annotations:
    """Read one split of a VOC-form folder, or the union of several, into arrays.

    Args:
        splits: (folder, split) pairs, as ``[("data/VOCdevkit/VOC2007", "trainval"), ("data/VOCdevkit/VOC2012",
            "trainval")]``. Image ids are row numbers in the union, from 0. The split ``"*"`` is every annotated image.
            Folders without ``Annotations`` and ``JPEGImages`` are searched for XML files and images.
        classes: every class name that occurs, in the order of the labels. None: collected from *all* annotation files
            of the folders, whatever their split, and sorted (VOC's 20 are in that order).
        strict: refuse boxes at fault instead of clipping or dropping them (see ``check_boxes``). A box with
            ``xmax <= xmin`` counts as one without width: VOC itself has no one-pixel boxes, stray clicks do that.

    Raises:
        InputError: a folder, split or image is missing, an XML is broken, or a class name is unknown.

    An image that a split lists and that has no XML is taken as one without objects; a warning counts them.
    """
    if not splits:
        raise InputError("VOC data set", found="no splits", needed="pairs of a folder and a split")
    folders = [VocFolder(os.fspath(root)) for root, _ in splits]
    names = [(folder, name) for folder, (_, split) in zip(folders, splits, strict=True) for name in folder.names(split)]
    source = ", ".join(f"{os.fspath(root)} ({split})" for root, split in splits)
    if not names:
        raise InputError(source, found="no images in the split", needed="at least one image name")
    parsed = {os.path.join(folder.root, name): folder.parse(name) for folder, name in names}
    if bare := [name for folder, name in names if name not in folder.annotated]:
        words = "%s: %d images without an XML, taken as background: %s"
        logger.warning(words, source, len(bare), listed(bare, shown=3))
    if len(parsed) < len(names):
        raise InputError(source, found=f"{len(names) - len(parsed)} images twice", needed="each image once")
    classes = _classes(folders, parsed) if classes is None else tuple(classes)
    if len(set(classes)) < len(classes):
        raise InputError(f"classes of {source}", found=list(classes), needed="names, each once")
    images = list(parsed.values())
    labels = _labels(names, images, classes)
    image_root = os.path.commonpath([folder.image_root for folder in folders])
    paths = [folder.image(name, image) for (folder, name), image in zip(names, images, strict=True)]
    files = FileNames([os.path.relpath(path, image_root) for path in paths])
    hw = known_sizes(np.array([image.hw for image in images], dtype=np.int32), image_root, files)
    rows = np.repeat(np.arange(len(images)), [len(image.labels) for image in images])
    corners = np.array([box for image in images for box in image.boxes], dtype=np.float64).reshape(-1, 4)
    describe = partial(_object, files=files, rows=rows, corners=corners)
    boxes, kept = check_boxes(_continuous(corners), hw[rows], describe, source=source, strict=strict)
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
        ignore=np.array([flag for image in images for flag in image.difficult], dtype=bool)[kept],
        areas=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
        box_ids=np.arange(1, len(boxes) + 1),
    )


def _classes(folders: Sequence[VocFolder], parsed: Mapping[str, VocImage]) -> tuple[str, ...]:
    """The names in all annotation files of the folders, sorted: VOC's own 20 are in this order too."""
    found = {name for image in parsed.values() for name in image.labels}
    for folder in {folder.root: folder for folder in folders}.values():
        others = (name for name in folder.annotated if os.path.join(folder.root, name) not in parsed)
        found.update(*(folder.parse(name).labels for name in others))
    return tuple(sorted(found))


def _labels(names: Sequence[tuple[VocFolder, str]], images: Sequence[VocImage], classes: tuple[str, ...]) -> np.ndarray:
    """(B,) the label of each object.

    Raises:
        InputError: a name that is none of the classes.
    """
    label_of = {name: label for label, name in enumerate(classes)}
    for (folder, name), image in zip(names, images, strict=True):
        if unknown := [label for label in image.labels if label not in label_of]:
            needed = f"a class of the data set: {nearest(unknown[0], classes)}"
            raise InputError(folder.xml(name), found=f"class name {unknown[0]!r}", needed=needed)
    return np.array([label_of[label] for image in images for label in image.labels], dtype=np.int64)


def _object(row: int, *, files: FileNames, rows: np.ndarray, corners: np.ndarray) -> str:
    """An object in words."""
    number = row - np.searchsorted(rows, rows[row]) + 1
    return f"{files[int(rows[row])]}, object {number}, {corners[row].tolist()} (xmin, ymin, xmax, ymax)"


def _continuous(corners: np.ndarray) -> np.ndarray:
    """(B, 4) corner pixels, counted from 1, as coordinates; a box without width or height stays without."""
    xyxy = corners - (1, 1, 0, 0)
    with np.errstate(invalid="ignore"):
        pointlike = (corners[:, 2:] <= corners[:, :2]).any(1)
    xyxy[pointlike, 2:] = xyxy[pointlike, :2]
    return xyxy


class VocFolder:
    """A folder of VOC's form with the listings of its parts; of another form, all that lies in it."""

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)
        if not os.path.isdir(root):
            raise InputError(f"VOC folder {root}", found="no such folder", needed=LAYOUT)
        parts = [os.path.join(self.root, part) for part in ("Annotations", "JPEGImages")]
        annotation_root, self.image_root = parts if all(map(os.path.isdir, parts)) else [self.root] * 2
        self.annotated = {
            _name(path): os.path.join(annotation_root, path) for path in _below(annotation_root, (".xml",))
        }
        if not self.annotated:
            raise InputError(f"VOC folder {root}", found="no XML file", needed=LAYOUT)
        self.pictures: dict[str, list[str]] = {}
        """Images by the last part of their names, in small letters and without ending."""
        for path in _below(self.image_root, SUFFIXES):
            self.pictures.setdefault(_name(os.path.basename(path)).lower(), []).append(path)
        self._by_last_part: dict[str, list[str]] = {}
        for name in self.annotated:
            self._by_last_part.setdefault(os.path.basename(name).lower(), []).append(name)

    def classes(self) -> list[str]:
        """Every class name that occurs in it, sorted."""
        return sorted({label for name in self.annotated for label in self.parse(name).labels})

    def splits(self) -> dict[str, str]:
        """The files that list images, by the name of their split."""
        for part in ("ImageSets/Main", "ImageSets", ""):
            folder = os.path.join(self.root, *part.split("/"))
            if os.path.isdir(folder):
                found = {
                    _name(name): os.path.join(folder, name)
                    for name in sorted(os.listdir(folder))
                    if name.endswith(".txt")
                }
                if found:
                    return found
        return {}

    def names(self, split: str) -> list[str]:
        """The image names of a split."""
        if split == EVERY:
            return list(self.annotated)
        splits = self.splits()
        if split not in splits:
            path = os.path.join(self.root, "ImageSets", "Main", f"{split}.txt")
            whole = [name for name in splits if name.rpartition("_")[2] not in splits or "_" not in name]
            needed = f"one of the splits there: {', '.join(whole) or 'none, put one image name per line in a file'}"
            raise InputError(path, found="no such file", needed=needed)
        return [self._named(line, splits[split]) for line in _lines(splits[split])]

    def _named(self, line: str, source: str) -> str:
        """The image that a line means: a name, perhaps with a path, an ending, or a flag behind it."""
        written = line.replace("\\", "/")
        for text in dict.fromkeys((written, written.rpartition(" ")[0].strip(), written.split()[0])):
            for name in dict.fromkeys((text, _name(text))):
                if name in self.annotated:
                    return name
            last = _name(os.path.basename(text)).lower()
            if len(found := self._by_last_part.get(last, [])) == 1:
                return found[0]
            if len(found) > 1:
                raise InputError(
                    source, found=f"{line!r}, which may be {listed(found)}", needed="names with their folder"
                )
            if last and last in self.pictures:  # without an annotation
                return _name(self.pictures[last][0])
        wanted = os.path.join(self.root, "Annotations", f"{line}.xml")
        raise InputError(
            wanted, found="no such file", needed=f"the annotation, or at least the image, that {source} names"
        )

    def xml(self, name: str) -> str:
        """Path of an annotation."""
        return self.annotated[name]

    def image(self, name: str, image: VocImage) -> str:
        """Path of the picture of an annotation: NAME with an ending, or the XML's <filename>."""
        beside = os.path.dirname(name)
        for wanted in dict.fromkeys((name, _name(re.split(r"[/\\]", image.filename)[-1]))):
            found = self.pictures.get(os.path.basename(wanted).lower(), [])
            exact = [path for path in found if os.path.basename(path) == image.filename] or [
                path
                for path in found
                if os.path.dirname(path) == beside and _name(os.path.basename(path)) == os.path.basename(name)
            ]
            if len(found) == 1 or exact:
                return os.path.join(self.image_root, (exact or found)[0])
            if found:
                needed = f"one image of {self.annotated.get(name, name)}"
                raise InputError(f"VOC folder {self.root}", found=listed(found), needed=needed)
        wanted = os.path.join(self.image_root, f"{name}.jpg")
        if is_lenient():
            return wanted
        needed = f"the image of {self.annotated.get(name, name)} ({', '.join(SUFFIXES)})"
        raise InputError(wanted, found="no such file", needed=needed)

    def parse(self, name: str) -> VocImage:
        """What the annotation of an image says; of none, nothing."""
        return parse_xml(self.annotated[name]) if name in self.annotated else VocImage("", (0, 0), [], [], [])


def _name(path: str) -> str:
    """Without the ending of an image or an XML."""
    stem, ending = os.path.splitext(path)
    return stem if ending.lower() in (*SUFFIXES, ".xml", ".txt") else path


def _below(root: str, endings: tuple[str, ...]) -> list[str]:
    """Files below a folder with one of the endings in any case, hidden ones left out, sorted."""
    found = []
    for folder, inside, files in os.walk(root):
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        names = [name for name in sorted(files) if name.lower().endswith(endings) and not name.startswith(".")]
        found += [os.path.relpath(os.path.join(folder, name), root) for name in names]
    return found


def _lines(path: str) -> list[str]:
    """The lines of a list of images, also as Windows writes it."""
    content = Path(path).read_bytes()
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(path, found=f"not text: {error}", needed="a list of image names in UTF-8") from error
    return [name for line in text.splitlines() if (name := line.strip().strip("\"'").strip())]
