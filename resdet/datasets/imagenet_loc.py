"""ILSVRC's classification and localization set (CLS-LOC): one class for each image, and boxes around its objects.

    ILSVRC/Data/CLS-LOC/train/<wnid>/*.JPEG    Annotations/CLS-LOC/train/<wnid>/*.xml
    ILSVRC/Data/CLS-LOC/val/*.JPEG             Annotations/CLS-LOC/val/*.xml

Of the 1,281,167 training images 544,546 have an annotation file; of the 50,000 for validation each has one. One's own
set of this form may have any classes. Coordinates: see :mod:`resdet.datasets.ilsvrc`.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from resdet.datasets.annotations import Annotations
from resdet.datasets.file_names import FileNames
from resdet.datasets.folder import SUFFIXES
from resdet.datasets.ilsvrc import (
    Records,
    annotations_of,
    ilsvrc_folder,
    list_path,
    names_below,
    read_list,
    read_records,
)
from resdet.errors import InputError, listed, nearest
from resdet.files import kept_path

logger = logging.getLogger(__name__)

TASK = "CLS-LOC"
MAPPING = "LOC_synset_mapping.txt"
"""Beside the folder ILSVRC: a line for each class, its wnid first."""


def read_imagenet_loc(
    *,
    root: str | os.PathLike[str],
    split: str = "train",
    images: str | os.PathLike[str] | None = None,
    annotations: str | os.PathLike[str] | None = None,
    image_list: str | os.PathLike[str] | None = None,
    blacklist: str | os.PathLike[str] | None = None,
    classes: Sequence[str] | None = None,
) -> Annotations:
    """Read one split into arrays; the images that have a box of their class, the others are counted in a warning.

    Boxes that the annotation calls difficult are ignored, so an image with no others counts as one without.

    An image's class is the folder it lies in; images that lie beside each other, as those for validation, have the
    class of their first object. Boxes of another class are left out. Class names are wnids, sorted: the labels that
    :func:`resdet.datasets.folder.read_folder` gives to the same images.

    Args:
        root: the folder ILSVRC or the one above it.
        split: ``train`` or ``val``; any folder below ``Data/CLS-LOC``.
        images: another folder with the images of the split, flat or one folder per class.
        annotations: another folder with its annotation files, flat or one folder per class, whichever of the two the
            images are. Where these are flat and the files are not, only names that occur once are found.
        image_list: names to be read, as ``train_loc`` (of ``ImageSets/CLS-LOC``) or the path of a list with a name on
            each line, as ``n01440764/n01440764_18`` or ``ILSVRC2012_val_00000001``. None: all images of the folder.
        blacklist: a file with images that are not read: names, or numbers from 1 into all images of the split, sorted
            by name without the folder, which is how the challenge's kit lists the validation images that it does not
            count.
        classes: the classes to read, in the order of the labels. None: the class folders of the split or, where it has
            none, those of ``train`` beside it; else what ``LOC_synset_mapping.txt`` lists; else all that occur.

    Raises:
        InputError: a folder, list or image is missing, an annotation file is broken, or no image is left.
    """
    folder, image_root, xml_root = _folders(root, split, images, annotations)
    source = f"{image_root} with {xml_root}"
    everything = list(names_below(image_root, SUFFIXES))
    files = everything if image_list is None else _listed(everything, list_path(folder, TASK, image_list))
    if blacklist is not None:
        forbidden = set(_listed(everything, blacklist))
        files = [file for file in files if file not in forbidden]
    class_names = _classes(folder, image_root, everything) if classes is None else list(classes)
    if classes is not None:
        if not class_names or len(set(class_names)) < len(class_names):
            raise InputError(f"classes of {source}", found=class_names, needed="one or more names, each once")
        files = [file for file in files if not os.path.dirname(file) or os.path.dirname(file) in set(class_names)]
    annotated = _with_annotations(files, xml_root)
    named, xmls = [file for file, _ in annotated], [os.path.join(xml_root, xml) for _, xml in annotated]
    paths = [os.path.join(image_root, file) for file in named]
    records = read_records(paths, xmls, kept_as=kept_path(folder, f"{TASK}.{split}"))
    own = _own_classes(annotated, records)
    class_names = sorted(set(own) - {""}) if class_names is None else class_names
    if classes is None:
        _check_known(own, class_names, xmls)
    of_class = np.isin(own, class_names)
    matching = records.of_boxes((records.names == np.array(own, dtype=str)[records.rows]) & of_class[records.rows])
    found = annotations_of(matching, named, classes=class_names, synsets=class_names, source=source, root=image_root)
    return _with_boxes(found, f"{len(files) - len(annotated)} without an annotation file", wanted=len(files))


def _folders(
    root: str | os.PathLike[str],
    split: str,
    images: str | os.PathLike[str] | None,
    annotations: str | os.PathLike[str] | None,
) -> tuple[str, str, str]:
    """The folder ILSVRC, and those of a split's images and annotation files."""
    folder = ilsvrc_folder(root, TASK) if images is None or annotations is None else os.fspath(root)
    image_root = os.fspath(images or os.path.join(folder, "Data", TASK, split))
    xml_root = os.fspath(annotations or os.path.join(folder, "Annotations", TASK, split))
    for path in (image_root, xml_root):
        if not os.path.isdir(path):
            needed = "images in Data/CLS-LOC/<split> and annotation files in Annotations/CLS-LOC/<split>"
            raise InputError(path, found="no such folder", needed=needed)
    return folder, image_root, xml_root


def _with_annotations(files: Sequence[str], xml_root: str) -> list[tuple[str, str]]:
    """Each image with its annotation file, in the same folder or alone of its name; those without one are left out."""
    xmls = {name[:-4]: name for name in names_below(xml_root, (".xml",))}
    times = Counter(map(os.path.basename, xmls))
    alone = {base: name for stem, name in xmls.items() for base in [os.path.basename(stem)] if times[base] == 1}
    pairs = [
        (file, xmls.get(stem) or (xmls if os.path.dirname(stem) else alone).get(os.path.basename(stem)))
        for file in files
        for stem in [_stem(file)]
    ]
    return [(file, xml) for file, xml in pairs if xml is not None]


def _own_classes(annotated: Sequence[tuple[str, str]], records: Records) -> list[str]:
    """The class of each image: its folder or, without one, that of its first box; of an image without boxes, none."""
    begins = np.searchsorted(records.rows, np.arange(len(annotated)))
    own = [os.path.dirname(file) for file, _ in annotated]
    for row in np.unique(records.rows):
        own[row] = own[row] or str(records.names[begins[row]])
    return own


def _check_known(own: Sequence[str], class_names: Sequence[str], xmls: Sequence[str]) -> None:
    known = set(class_names)
    for xml, name in zip(xmls, own, strict=True):
        if name and name not in known:
            raise InputError(xml, found=f"class {name!r}", needed=nearest(name, class_names))


def _stem(file: str) -> str:
    return os.path.splitext(file)[0]


def _listed(everything: Sequence[str], path: str | os.PathLike[str]) -> list[str]:
    """The images that a list names or, where every line is a number, counts."""
    times = Counter(map(os.path.basename, everything))  # a name alone will do unless two folders have it
    by_name = {name: file for file in everything for name in (file, _stem(file))}
    alone = [(os.path.basename(file), file) for file in everything if times[os.path.basename(file)] == 1]
    by_name |= {name: file for base, file in alone for name in (base, _stem(base))}
    lines = [name for name, _ in read_list(path) if name != "ImageId"]  # the head of Kaggle's LOC_val_solution.csv
    if all(name.isdecimal() and name not in by_name for name in lines):
        by_name = {str(number): file for number, file in enumerate(sorted(everything, key=os.path.basename), 1)}
    missing = [name for name in lines if name not in by_name]
    if missing:
        found = f"{len(missing)} of {len(lines)} names are no image there: {listed(missing, shown=3)}"
        raise InputError(path, found=found, needed=f"names of the {len(everything)} images of the split")
    return list(dict.fromkeys(by_name[name] for name in lines))


def _classes(folder: str, image_root: str, everything: Sequence[str]) -> list[str] | None:
    """Class folders of the split or of ``train`` beside it, or the synset mapping's; None where there are neither."""
    own = sorted({os.path.dirname(file) for file in everything} - {""})
    if own:
        return own
    beside = os.path.join(os.path.dirname(os.path.abspath(image_root)), "train")
    if os.path.isdir(beside):
        own = sorted(name for name in os.listdir(beside) if os.path.isdir(os.path.join(beside, name)))
    for place in (folder, os.path.dirname(os.path.abspath(folder))):
        if not own and os.path.isfile(os.path.join(place, MAPPING)):
            own = sorted(name for name, _ in read_list(os.path.join(place, MAPPING)))
    return own or None


def _with_boxes(found: Annotations, unannotated: str, *, wanted: int) -> Annotations:
    """The images that have a box which is not ignored; tells how many have none."""
    boxes = np.diff(found.first)
    rows = np.repeat(np.arange(len(boxes)), boxes)
    kept = np.bincount(rows[~found.ignore], minlength=len(boxes)) > 0
    if kept.sum() < wanted:
        reasons = f"{unannotated}, {int((~kept).sum())} without a box of their class"
        if not kept.any():
            needed = "images and annotation files of the same names, with boxes of the image's class"
            raise InputError(found.source, found=f"no image with a box: of {wanted} {reasons}", needed=needed)
        logger.warning("%s: %d of %d images are left out: %s", found.source, wanted - kept.sum(), wanted, reasons)
    elif not wanted:
        raise InputError(found.source, found="no images", needed="at least one image")
    of_kept = {name: getattr(found, name)[kept[rows]] for name in ("boxes", "labels", "ignore", "areas", "box_ids")}
    return replace(
        found,
        **of_kept,
        image_ids=np.arange(int(kept.sum())),
        files=FileNames([found.files[int(row)] for row in np.flatnonzero(kept)]),
        hw=found.hw[kept],
        first=np.concatenate([[0], np.cumsum(boxes[kept])]),
    )
