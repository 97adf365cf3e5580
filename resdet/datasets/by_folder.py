"""A data set by its folder: which form it has, where its splits are, and what was taken."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from resdet.datasets import voc
from resdet.datasets.annotations import Annotations
from resdet.datasets.coco import read_coco
from resdet.datasets.images import SUFFIXES
from resdet.datasets.lenience import is_lenient
from resdet.datasets.voc import read_voc
from resdet.datasets.yolo import SPLITS, label_file, read_yaml, read_yolo, read_yolo_files
from resdet.errors import InputError, listed

logger = logging.getLogger(__name__)
NEEDED = (
    "COCO (a .json with images, annotations, categories), VOC (.xml files) or YOLO (.txt files, best with a data.yaml)"
)
SHARE = 5
"""Of a set without a split, one image in so many is for validation."""
COCO_KEYS = {"images", "annotations", "categories"}


class FolderData(NamedTuple):
    """What was recognised."""

    form: str
    """In words."""
    splits: dict[str, Callable[[Sequence[str] | None], Annotations]]
    """Readers by ``train``, ``val``, ``test``; of a set without a split only ``all``. They take the classes."""


def read_folder(
    folder: str | os.PathLike[str], split: str = "train", *, classes: Sequence[str] | None = None
) -> Annotations:
    """Read one split of a data set in whatever form it is.

    Recognised are COCO files (a pair, Roboflow's ``train/valid/test``, CVAT's and Label Studio's exports unpacked), VOC
    with and without ``ImageSets``, and YOLO with and without ``data.yaml``. Without a split, one image in five is for
    validation, chosen by the hash of its content, so that it stays there whatever is added.

    Args:
        folder: of the data set; or one of its files, where there are several sets.
        split: ``"train"``, ``"val"`` (where there is none: ``test``) or ``"test"``.
        classes: names in the order of the labels; None: those of the data.

    Raises:
        InputError: nothing or more than one thing is recognised, or its contents are not usable.
    """
    data = recognise(folder)
    name = "test" if split == "val" and "val" not in data.splits and "test" in data.splits else split
    if name in data.splits:
        found, how = data.splits[name](classes), f"its {name} split"
    elif name == "test" or (set(data.splits) > {"all"} and len(data.splits) > 1 and name not in ("train", "val")):
        raise InputError(f"data {folder}", found=f"splits {listed(sorted(data.splits))}", needed=f"a split {name!r}")
    else:
        whole = data.splits.get("all") or data.splits.get("train") or next(iter(data.splits.values()))
        everything = whole(classes)
        chosen = validation_rows(everything)
        rows = chosen if name == "val" else np.setdiff1d(np.arange(len(everything)), chosen)
        found, how = everything.select(rows), f"one image in {SHARE} for validation, by the hash of its content"
    logger.info(
        "data %s: %s\n  %s: %d images, %d boxes (%s)\n  %d classes: %s",
        folder,
        data.form,
        split,
        len(found),
        len(found.boxes),
        how,
        len(found.classes),
        listed(found.classes, shown=12),
    )
    return found


def validation_rows(data: Annotations) -> np.ndarray:
    """The images that are for validation: by the hash of their content; one at least, and not all."""
    hashes = []
    for row in range(len(data)):
        try:
            content = Path(data.path(row)).read_bytes()
        except OSError as error:
            if not is_lenient():
                needed = "a readable image file"
                raise InputError(f"image {data.path(row)}", found=error.strerror, needed=needed) from error
            content = os.fsencode(data.files[row])
        hashes.append(int(hashlib.sha256(content).hexdigest()[:12], 16))
    rows = np.flatnonzero(np.array(hashes) % SHARE == 0)
    if len(data) > 1 and not 0 < len(rows) < len(data):
        rows = np.sort(np.argsort(hashes)[: -(-len(data) // SHARE)])
    return rows


def recognise(folder: str | os.PathLike[str]) -> FolderData:
    """The form of a data set, and its splits.

    Raises:
        InputError: nothing or more than one thing is recognised.
    """
    path = Path(folder)
    if path.is_file():
        if path.suffix.lower() in (".yaml", ".yml"):
            return _yolo(path)
        if path.suffix.lower() == ".json":
            return _coco([path], path.parent)
        raise InputError(f"data {folder}", found="a file", needed=f"a folder, a .json or a .yaml: {NEEDED}")
    if not path.is_dir():
        raise InputError(f"data {folder}", found="no such folder", needed=NEEDED)
    files = list(_below(path))
    kinds = {
        "COCO": [f for f in files if f.suffix.lower() == ".json" and _is_coco(f)],
        "YOLO": [f for f in files if f.suffix.lower() in (".yaml", ".yml") and _is_yolo(f)],
        "VOC": [f for f in files if f.suffix.lower() == ".xml"],
    }
    there = [name for name, found in kinds.items() if found]
    if len(there) > 1 or len(kinds["YOLO"]) > 1:
        first = [str(kinds[name][0]) for name in there] if len(there) > 1 else list(map(str, kinds["YOLO"]))
        needed = "one form: --data with the sub-folder or the file that is meant"
        raise InputError(f"data {folder}", found=f"several data sets: {listed(first)}", needed=needed)
    if kinds["COCO"]:
        return _coco(kinds["COCO"], path)
    if kinds["YOLO"]:
        return _yolo(kinds["YOLO"][0])
    if kinds["VOC"]:
        return _voc(path)
    images = [f for f in files if f.suffix.lower() in SUFFIXES]
    if any(label_file(image).is_file() for image in images):
        return _bare_yolo(path, images)
    found = f"{len(images)} images and no annotations" if images else "no images"
    raise InputError(f"data {folder}", found=found, needed=NEEDED)


def _coco(files: Sequence[Path], root: Path) -> FolderData:
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(_split_of(file.relative_to(root)) if file != root else "all", []).append(file)
    if len(files) == 1:
        by_split = {"all": list(files)}
    for split, found in by_split.items():
        if len(found) > 1 or (split == "all" and len(by_split) > 1):
            needed = "one file for each of train, val and test, told by their names; or --data with one file"
            raise InputError(f"data {root}", found=listed([str(f) for f in files]), needed=needed)

    def reader(file: Path, split: str) -> Callable[[Sequence[str] | None], Annotations]:
        return lambda classes: read_coco(file, _image_root(file, split, root), classes=classes)

    form = f"COCO form ({listed([str(f.relative_to(root.parent)) for f in files])})"
    return FolderData(form, {split: reader(found[0], split) for split, found in by_split.items()})


def _image_root(file: Path, split: str, root: Path) -> Path:
    """The folder that the names of a COCO file start from: the first in which one of the first names is."""
    rows = json.loads(file.read_bytes()).get("images") or [{}]
    names = [str(row.get("file_name", "")).replace("\\", "/") for row in rows[:20]]
    words = [name for known in SPLITS.values() if split in known or split == known[0] for name in known]
    bases = [file.parent, file.parent / "images", *(file.parent / word for word in words)]
    bases += [root, root / "images", *(root / "images" / word for word in words)]
    bases += [p for p in sorted(root.iterdir()) if p.is_dir() and p.name.lower().startswith(tuple(words) or "\0")]
    for base in bases:
        if any(os.path.isfile(base / name) for name in names if name):
            return base
    return root  # where they are found by the last part of their names


def _yolo(file: Path) -> FolderData:
    content = read_yaml(file)
    there = [split for split, words in SPLITS.items() if any(content.get(word) for word in words)]

    def reader(split: str) -> Callable[[Sequence[str] | None], Annotations]:
        return lambda classes: read_yolo(file, split, classes=classes)

    splits = {split: reader(split) for split in there}
    if set(splits) == {"train"}:
        splits = {"all": splits["train"]}
    return FolderData(f"YOLO form ({file.name})", splits)


def _bare_yolo(root: Path, images: Sequence[Path]) -> FolderData:
    files = [f for f in _below(root) if f.name.lower() in ("classes.txt", "obj.names", "labels.txt", "_darknet.labels")]
    if len(files) != 1:
        needed = "classes.txt with a name a line, or a data.yaml with names"
        raise InputError(f"data {root}", found=f"YOLO form with {len(files)} files of class names", needed=needed)
    names = [line.strip() for line in files[0].read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    groups: dict[str, list[Path]] = {}
    for image in sorted(images):
        groups.setdefault(_split_of(image.relative_to(root).parent), []).append(image)

    def reader(split: str) -> Callable[[Sequence[str] | None], Annotations]:
        return lambda classes: read_yolo_files(groups[split], names, source=f"{root} ({split})", classes=classes)

    if not {"train", "val"} <= set(groups) and not {"train", "test"} <= set(groups):
        groups = {"all": sorted(images)}
    return FolderData(f"YOLO form ({files[0].name})", {split: reader(split) for split in groups})


def _voc(root: Path) -> FolderData:
    folder = voc.VocFolder(str(root))
    listed_splits = folder.splits()
    names = {split: next((word for word in words if word in listed_splits), None) for split, words in SPLITS.items()}
    if names["train"] is None and "trainval" in listed_splits and names["test"]:
        names["train"] = "trainval"
    classes = folder.classes()

    def reader(split: str) -> Callable[[Sequence[str] | None], Annotations]:
        return lambda asked: read_voc([(root, split)], classes=classes if asked is None else asked)

    if names["train"] and (names["val"] or names["test"]):
        return FolderData("VOC form (ImageSets)", {s: reader(name) for s, name in names.items() if name})
    whole = read_voc([(root, voc.EVERY)], classes=classes)
    groups: dict[str, list[int]] = {}
    for row, file in enumerate(whole.files):
        groups.setdefault(_split_of(Path(file).parent), []).append(row)
    if not {"train", "val"} <= set(groups) and not {"train", "test"} <= set(groups):
        return FolderData(f"VOC form ({len(folder.annotated)} .xml files)", {"all": reader(voc.EVERY)})

    def part(rows: list[int]) -> Callable[[Sequence[str] | None], Annotations]:
        return lambda asked: reader(voc.EVERY)(asked).select(np.array(rows))

    return FolderData("VOC form (folders of splits)", {split: part(rows) for split, rows in groups.items()})


def _split_of(path: Path) -> str:
    """``train``, ``val``, ``test`` or ``all``, by the words in a path."""
    for part in reversed(path.parts):
        words = {
            "".join(ch for ch in word if ch.isalpha())
            for word in part.lower().replace(".", "_").replace("-", "_").split("_")
        }
        for split, known in SPLITS.items():
            if words & set(known):
                return split
    return "all"


def _below(root: Path) -> Iterator[Path]:
    """Files of a folder, hidden ones left out, sorted."""
    for folder, inside, files in os.walk(root):
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(files) if not name.startswith("."))


def _is_coco(path: Path) -> bool:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.keys() >= COCO_KEYS


def _is_yolo(path: Path) -> bool:
    try:
        return bool(read_yaml(path))
    except InputError:
        return False
