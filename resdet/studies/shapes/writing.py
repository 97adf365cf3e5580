"""How an embedded data set gets to the disk: at first use, whole or not at all, in the form of VOC and ILSVRC."""

from __future__ import annotations

import json
import logging
import multiprocessing
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from resdet.cpu.threads import cpus
from resdet.errors import InputError

_JPEG_QUALITY = 90
_LOG = logging.getLogger(__name__)

Map = Callable[[Callable, Iterable], Iterator]


def write_once(
    root: Path,
    write: Callable[[Path, Map], None],
    *,
    kind: str,
    version: int,
    numbers: Mapping[str, int],
    least_images: int = 0,
    processes: int | None = None,
) -> Path:
    """Put a drawn data set at ``root``, unless its marker file says that it is there already.

    It is written to a temporary folder beside ``root`` and renamed, so ``root`` is never half-written, and several
    processes may call this at once. A set of other numbers or of another version at ``root`` is replaced.

    Args:
        root: folder of the data set.
        write: draws it into a folder, with the map that it is given.
        kind: name of the data set and, with ``.json``, of the marker file.
        version: of the pictures.
        numbers: ``seed``, ``train``, ``val`` and what else tells one such set from another.
        least_images: of each split: one of each class, where there must be.
        processes: drawing processes; every core where None. They are spawned, so a script that asks for more than
            one must be guarded by ``if __name__ == "__main__"``.

    Raises:
        InputError: a number is out of range, ``root`` holds something else, or it cannot be written.
    """
    for name, value in numbers.items():
        least = 0 if name == "seed" else least_images
        if not isinstance(value, int) or value < least:
            needed = f"an integer, {least} or more" + (": one image of each class" if least else "")
            raise InputError(f"write_{kind}({name}=...)", found=repr(value), needed=needed)
    file, marker = f"{kind}.json", json.dumps({"data set": kind, "version": version, **numbers}, indent=1)
    if _read(root / file) == marker:
        return root
    if root.exists() and _read(root / file) is None and (not root.is_dir() or any(root.iterdir())):
        raise InputError(root, found=f"something that is no {kind} data set", needed="a new or an empty folder")
    images = numbers["train"] + numbers["val"]
    _LOG.info("writing the %s data set to %s: %d images", kind, root, images)
    temporary = root.parent / f".{root.name}-{uuid.uuid4().hex[:12]}"
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with drawing(processes, images) as mapped:
            write(temporary, mapped)
        (temporary / file).write_text(marker, encoding="utf-8")
        publish(temporary, root, file)
    except BrokenProcessPool as error:
        needed = 'the call under `if __name__ == "__main__":`, enough memory, or processes=1'
        raise InputError(f"writing {root}", found="a drawing process ended early", needed=needed) from error
    except OSError as error:
        raise InputError(root, found=f"writing failed: {error}", needed="a writable folder with 40 MB free") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return root


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def publish(temporary: Path, root: Path, file: str) -> None:
    """Put the finished folder in place; where another process was first with the same marker file, keep that one."""
    old, marker = root.parent / f"{temporary.name}-old", _read(temporary / file)
    try:
        if root.exists() and _read(root / file) != marker:
            root.rename(old)
        temporary.rename(root)
    except OSError:
        if _read(root / file) != marker:
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def drawing(processes: int | None, images: int) -> Iterator[Map]:
    """A map over the drawing processes; this one alone where a pool would not pay or is not allowed."""
    if processes is None:
        processes = cpus()
    processes = min(processes, images // 50, 16)
    if processes < 2 or multiprocessing.current_process().daemon:
        yield map
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        yield partial(pool.map, chunksize=8)


def voc_xml(head: Mapping[str, object], objects: Iterable[Mapping[str, object]]) -> str:
    """An annotation file: the elements of the whole, then those of each object."""
    lines = [f"  {nested({tag: value})}" for tag, value in head.items()]
    for each in objects:
        lines += ["  <object>", *(f"    {nested({tag: value})}" for tag, value in each.items()), "  </object>"]
    return "\n".join(["<annotation>", *lines, "</annotation>", ""])


def nested(elements: Mapping[str, object]) -> str:
    """Elements inside another."""
    return "".join(f"<{tag}>{value}</{tag}>" for tag, value in elements.items())


def size_element(image: np.ndarray) -> str:
    """What the element ``size`` of an (H, W, 3) image holds."""
    h, w = image.shape[:2]
    return nested({"width": w, "height": h, "depth": 3})


def encode_jpeg(image: np.ndarray) -> bytes:
    """The file of an (H, W, 3) uint8 RGB image."""
    return cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes()
