"""CIFAR-10 and CIFAR-100 in memory, from the published files or from folders of images (section 4.2 of the paper).

================  =====================================================================================
form              what ``root`` may be
================  =====================================================================================
published         ``cifar-10-python.tar.gz``, ``cifar-100-python.tar.gz``, or the folder in them
images            ``train/<class>/*.png`` and ``test/<class>/*.png`` (or .jpg, ...), as a folder, zip or tar
================  =====================================================================================

Archives are read where they are. The published files are pickles: torchvision knows the MD5 of each, and none is read
that has another. The binary version is not read. Whatever the form, images come class by class, in the order of the
files within a class, so that an index (and with it a split or a batch) means the same image in all forms.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100

from resdet.datasets.folder import SUFFIXES
from resdet.datasets.images import open_image
from resdet.errors import InputError, listed, nearest
from resdet.files import keep_arrays, kept_arrays, kept_path, sha256

logger = logging.getLogger(__name__)

SIDE = 32
SPLITS = ("train", "test", "train45k", "val5k")
SPLIT_SEED = 0
"""Of the 45k/5k split. The paper does not say which images it held out."""
LAYOUTS = (
    "cifar-10-python.tar.gz, cifar-100-python.tar.gz, the folder in one of these, "
    "or train/<class>/*.png and test/<class>/*.png as a folder or a zip"
)
UNREADABLE = (OSError, EOFError, RuntimeError, zlib.error, LZMAError, zipfile.BadZipFile, tarfile.TarError)
"""What a file that is cut, damaged, locked or of another kind raises; of an encrypted zip it is a RuntimeError."""


@dataclass(frozen=True, eq=False)
class ArrayData:
    """A classification set that fits in memory."""

    images: Tensor
    """(n, 3, H, W) uint8 RGB."""
    labels: Tensor
    """(n,) int64 in [0, K)."""
    classes: tuple[str, ...]
    """K names; index = label."""
    source: str
    """Where it was read, for messages."""

    def __len__(self) -> int:
        return len(self.labels)


PUBLISHED: dict[str, type[CIFAR10]] = {"cifar10": CIFAR10, "cifar100": CIFAR100}
"""They list the files of https://www.cs.toronto.edu/~kriz/cifar.html and their MD5."""


def read_cifar(root: str | Path, *, split: str, name: str = "cifar10") -> ArrayData:
    """Read one split.

    Decoded images are kept in the user's cache (:func:`resdet.files.cache_folder`) and read from there as long as the
    archive has the same content, or the files of a folder the same sizes and times.

    Args:
        root: see the table above. An archive may have one leading folder.
        split: ``train`` (50,000), ``test`` (10,000), or the paper's division of the former: ``train45k`` and ``val5k``.
            The latter are 5,000 images drawn once for all, the same on every machine; its classes are balanced as far
            as chance has it (CIFAR-10: 475 to 521 of each).
        name: ``cifar10`` or ``cifar100``: which of the published sets is expected. Folders of images have the classes
            that they have, and may have any number of images.

    Raises:
        InputError: ``root`` is missing, damaged, in none of these forms or of the other set; a published file is
            missing or not as published; an image does not decode or is not 32 x 32 RGB; a class folder is empty; train
            and test have different classes.
    """
    for value, known in ((split, SPLITS), (name, tuple(PUBLISHED))):
        if value not in known:
            raise InputError(f"CIFAR in {root}", found=f"{value!r}", needed=nearest(value, known))
    if not os.path.exists(root):
        raise InputError(f"CIFAR in {root}", found="no such file or folder", needed=LAYOUTS)
    whole = "test" if split == "test" else "train"
    data = _read_kept(root, whole) or _read(root, whole, name)
    if split == whole:
        return data
    if len(data) != 50_000:
        raise InputError(f"{root}, split {split}", found=f"{len(data):,} images in train", needed="50,000")
    rows = split_rows()[0 if split == "train45k" else 1]
    return ArrayData(data.images[rows], data.labels[rows], data.classes, f"{root}, {split}")


def split_rows() -> tuple[Tensor, Tensor]:
    """The rows of ``train45k`` and ``val5k`` in ``train``, both rising: (45,000,) and (5,000,) int64."""
    # The raw numbers of a bit generator are guaranteed to stay as they are; a Generator's permutation is not.
    order = np.argsort(np.random.PCG64(SPLIT_SEED).random_raw(50_000), kind="stable")
    held_out, kept = np.split(order, [5_000])
    return torch.from_numpy(np.sort(kept)), torch.from_numpy(np.sort(held_out))


def _read(root: str | Path, split: str, name: str) -> ArrayData:
    with _opened(root) as tree:
        found = next((known for known, kind in PUBLISHED.items() if _checksums(kind).keys() & set(tree.names)), None)
        if found and found != name:
            raise InputError(f"CIFAR in {root}", found=f"the files of {found}", needed=f"those of {name}")
        if found:
            return _read_published(tree, split, name, root)
        fingerprint = _fingerprint(root)
        data = _read_images(tree, split, root)
    _keep(data, root, split, fingerprint)
    return data


# ------------------------------------------------------------------------------------------------------ places


class _Tree(NamedTuple):
    """The content of a folder or an archive."""

    names: Sequence[str]
    """Files, and folders with "/" at the end, below the leading folder if there is one; in the order of storage."""
    read: Callable[[str], bytes]


@contextmanager
def _opened(root: str | Path) -> Iterator[_Tree]:
    try:
        if os.path.isdir(root):
            yield _Tree(_walk(root), lambda name: Path(root, name).read_bytes())
        elif zipfile.is_zipfile(root):
            with zipfile.ZipFile(root) as archive:
                short = _shorten(archive.namelist())
                yield _Tree(list(short), lambda name: archive.read(short[name]))
        else:
            with tarfile.open(root) as archive:
                members = {member.name + "/" * member.isdir(): member for member in archive}
                short = _shorten([name for name, member in members.items() if member.isdir() or member.isfile()])
                yield _Tree(list(short), lambda name: archive.extractfile(members[short[name]]).read())
    except UNREADABLE as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(":")
        raise InputError(
            f"CIFAR in {root}", found=f"damaged, or no archive ({reason})", needed=f"a whole one of {LAYOUTS}"
        ) from error


def _walk(root: str | Path) -> list[str]:
    """What is in the folder, and all that is below ``train`` and ``test``."""
    names = []
    for path, folders, files in os.walk(root, followlinks=True):
        below = os.path.relpath(path, root).replace(os.sep, "/").removeprefix(".")
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        names += [f"{below}/{name}".removeprefix("/") for name in [f"{f}/" for f in folders] + sorted(files)]
        if not below:
            folders[:] = [f for f in folders if f in ("train", "test")]
    return [name for name in names if not name.rpartition("/")[2].startswith(".")]


def _shorten(names: Sequence[str]) -> dict[str, str]:
    """Names without the one folder that holds everything, and without hidden files, to full names."""
    shown = {n.removeprefix("./"): n for n in names}
    shown = {s: n for s, n in shown.items() if s and not any(p[:1] == "." or p == "__MACOSX" for p in s.split("/"))}
    tops = {short.split("/")[0] for short in shown}
    if len(tops) == 1 and all("/" in short for short in shown) and not tops & {"train", "test"}:
        shown = {short.partition("/")[2]: name for short, name in shown.items() if short.partition("/")[2]}
    return shown


# ------------------------------------------------------------------------------------------------------ published files


def _checksums(kind: type[CIFAR10], splits: Sequence[str] = ("train", "test")) -> dict[str, str]:
    """The MD5 of the files of some splits and of the file of class names."""
    lists = {"train": kind.train_list, "test": kind.test_list}
    return {kind.meta["filename"]: kind.meta["md5"]} | {file: md5 for split in splits for file, md5 in lists[split]}


def _read_published(tree: _Tree, split: str, name: str, root: str | Path) -> ArrayData:
    checksums = _checksums(PUBLISHED[name], [split])
    meta, *files = checksums
    missing = sorted(checksums.keys() - set(tree.names))
    if missing:
        raise InputError(f"{name} in {root}", found=f"no file {', '.join(missing)}", needed=", ".join(files))
    content = {}
    # In the order of storage: going back in a compressed archive means to decompress it again from its start.
    for file in (file for file in tree.names if file in checksums):
        pickled = tree.read(file)
        md5 = hashlib.md5(pickled, usedforsecurity=False).hexdigest()
        if md5 != checksums[file]:
            needed = f"the published file, MD5 {checksums[file]}"
            raise InputError(f"{root}: {file}", found=f"a damaged or altered file, MD5 {md5}", needed=needed)
        content[file] = pickle.loads(pickled, encoding="latin1")  # texts of Python 2 hold bytes
    key = "labels" if "labels" in content[files[0]] else "fine_labels"
    labels = np.concatenate([np.array(content[file][key], dtype=np.int64) for file in files])
    by_class = np.argsort(labels, kind="stable")
    images = np.concatenate([content[file]["data"] for file in files])[by_class].reshape(-1, 3, SIDE, SIDE)
    classes = tuple(content[meta][PUBLISHED[name].meta["key"]])
    return ArrayData(torch.from_numpy(images), torch.from_numpy(labels[by_class]), classes, f"{root}, {split}")


# ------------------------------------------------------------------------------------------------------ image files


def _read_images(tree: _Tree, split: str, root: str | Path) -> ArrayData:
    members: dict[str, dict[str, list[str]]] = {"train": {}, "test": {}}  # split, class, names
    for name in tree.names:
        folder, _, rest = name.partition("/")
        label, slash, _ = rest.partition("/")
        if folder in members and slash:
            files = members[folder].setdefault(label, [])
            if name.lower().endswith(SUFFIXES):
                files.append(name)
    by_class = members[split]
    if not by_class:
        tops = sorted({name.split("/")[0] for name in tree.names})
        raise InputError(f"CIFAR in {root}", found=f"no {split}/<class>/, but {listed(tops)}", needed=LAYOUTS)
    here, there = (set(members[s]) for s in ("train", "test"))
    if here and there and here != there:
        found = f"classes only in train: {listed(sorted(here - there))}; only in test: {listed(sorted(there - here))}"
        raise InputError(f"CIFAR in {root}", found=found, needed="the same class folders in train and test")
    classes = tuple(sorted(by_class))
    empty = [name for name in classes if not by_class[name]]
    if empty:
        found = f"{len(empty)} of {len(classes)} class folders without an image: {listed(empty)}"
        raise InputError(f"{root}: {split}", found=found, needed=f"at least one ({' '.join(SUFFIXES)}) in each")

    row = {name: i for i, name in enumerate(name for label in classes for name in sorted(by_class[label]))}
    logger.info("decoding %s images of %s", f"{len(row):,}", root)
    images = np.empty((len(row), 3, SIDE, SIDE), dtype=np.uint8)
    for name in tree.names:
        if name in row:
            images[row[name]] = _decode(tree.read(name), f"{root}: {name}").transpose(2, 0, 1)
    labels = np.repeat(np.arange(len(classes)), [len(by_class[label]) for label in classes]).astype(np.int64)
    return ArrayData(torch.from_numpy(images), torch.from_numpy(labels), classes, f"{root}, {split}")


def _decode(content: bytes, where: str) -> np.ndarray:
    needed = f"a whole image of {SIDE} x {SIDE} RGB pixels"
    try:
        with open_image(io.BytesIO(content)) as image:
            (width, height), mode = image.size, image.mode
            if (width, height, mode) == (SIDE, SIDE, "RGB"):
                return np.asarray(image)
    except Exception as error:  # Pillow's decoders raise whatever they stumble on
        found = f"does not decode ({len(content):,} bytes; {type(error).__name__}: {error})"
        raise InputError(where, found=found, needed=needed) from error
    raise InputError(where, found=f"{width} x {height} pixels, {mode}", needed=needed)


# ------------------------------------------------------------------------------------------------------ decoded images


def _fingerprint(root: str | Path) -> str:
    """What changes when the source does: an archive's content, sizes and times of the files of a folder."""
    if not os.path.isdir(root):
        return sha256(root)
    digest = hashlib.sha256()
    for name in _walk(root):
        stat = os.stat(os.path.join(root, name))
        digest.update(f"{name} {stat.st_size} {stat.st_mtime_ns}\n".encode("utf8", "surrogateescape"))
    return digest.hexdigest()


def _read_kept(root: str | Path, split: str) -> ArrayData | None:
    path = kept_path(root, split)
    kept = kept_arrays(path, _fingerprint(root)) if path.is_file() else None
    if kept is None or not kept.keys() >= {"images", "labels", "classes"}:
        return None
    images, labels = torch.from_numpy(kept["images"]), torch.from_numpy(kept["labels"])
    return ArrayData(images, labels, tuple(kept["classes"].tolist()), f"{root}, {split}")


def _keep(data: ArrayData, root: str | Path, split: str, fingerprint: str) -> None:
    arrays = {"images": data.images.numpy(), "labels": data.labels.numpy(), "classes": np.array(data.classes)}
    keep_arrays(kept_path(root, split), fingerprint, arrays)
