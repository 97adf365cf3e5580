"""The embedded data set: a miniature world in COCO, VOC and folder-per-class form, written at first use.

It has what the ResNet paper's detection measures need: sizes over an 8-fold range, clutter, occlusion, truncation,
crowds, images without objects, and classes that only the scene around them tells apart (:data:`SCENE_CLASSES`).
Image i of a split is a function of (seed, split, i) alone, so a larger set begins with the smaller one.

    root/Annotations/*.xml  ImageSets/Main/{train,val}.txt     VOC
    root/annotations/instances_{train,val}.json                COCO, of the same root/JPEGImages/*.jpg
    root/crops/{train,val}/<class>/*.jpg                       for classification; from scenes of their own
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from itertools import count, islice
from pathlib import Path

import cv2
import numpy as np

from resdet.errors import InputError
from resdet.studies.shapes.scene import CLASSES, DIFFICULT_BELOW, SCENE_CLASSES, Scene, SceneObject, draw_scene

__all__ = ["CATEGORY_IDS", "CLASSES", "SCENE_CLASSES", "VERSION", "write_shapes"]

VERSION = 2
"""Raised with every change of the pictures; a data set of another version is written anew."""
CATEGORY_IDS = (1, 2, 3, 5, 6, 7, 9, 10, 13, 14)
"""Ids of the COCO form, with holes like COCO's own, so that a mix-up of ids and labels shows."""
MARKER = "shapes.json"
CROP_SIDE = 64
_STREAMS = {"train": 0, "val": 1, "crops/train": 2, "crops/val": 3}
_FIRST_IMAGE_ID = {"train": 1, "val": 1_000_001}
_JPEG_QUALITY = 90
_LOG = logging.getLogger(__name__)

Map = Callable[[Callable, Iterable], Iterator]


def write_shapes(
    root: str | Path = "data/shapes",
    *,
    seed: int = 0,
    train: int = 1200,
    val: int = 200,
    crops_per_class: int = 240,
    processes: int | None = None,
) -> Path:
    """Write the data set, unless it is there already.

    It is written to a temporary folder beside ``root`` and renamed, so ``root`` is never half-written, and several
    processes may call this at once. A set of other arguments or of another version at ``root`` is replaced.

    Args:
        root: folder of the data set.
        seed: of everything in it.
        train: images of the training split.
        val: images of the validation split.
        crops_per_class: training crops of each class; a fifth as many for validation.
        processes: drawing processes; every core where None. They are spawned, so a script that asks for more than
            one must be guarded by ``if __name__ == "__main__"``.

    Returns:
        ``root`` as a path.

    Raises:
        InputError: an argument is out of range, ``root`` holds something else, or it cannot be written.
    """
    numbers = {"seed": seed, "train": train, "val": val, "crops_per_class": crops_per_class}
    for name, value in numbers.items():
        if not isinstance(value, int) or value < 0:
            raise InputError(f"write_shapes({name}=...)", found=repr(value), needed="an integer, 0 or more")

    def write(temporary: Path, mapped: Map) -> None:
        for split, images in (("train", train), ("val", val)):
            _write_detection(temporary, split, seed, images, mapped)
        for split, crops in (("train", crops_per_class), ("val", crops_per_class // 5)):
            _write_crops(temporary / "crops" / split, f"crops/{split}", seed, crops, mapped)

    marker = json.dumps({"data set": "shapes", "version": VERSION, **numbers}, indent=1)
    return write_once(Path(root), marker, write, images=train + val, processes=processes)


def write_once(
    root: Path,
    marker: str,
    write: Callable[[Path, Map], None],
    *,
    images: int,
    processes: int | None = None,
    marker_file: str = MARKER,
) -> Path:
    """Put a drawn data set at ``root``, whole or not at all, unless its marker file says that it is there already.

    Args:
        root: folder of the data set.
        marker: what tells this data set from another: its kind, version and arguments.
        write: draws it into a folder, with the map that it is given.
        images: how many there are to draw.
        processes: see :func:`write_shapes`.
        marker_file: name of the file that holds the marker.

    Raises:
        InputError: ``root`` holds something else, or it cannot be written.
    """
    kind = marker_file.partition(".")[0]
    if _marker(root, marker_file) == marker:
        return root
    if root.exists() and _marker(root, marker_file) is None and (not root.is_dir() or any(root.iterdir())):
        raise InputError(root, found=f"something that is no {kind} data set", needed="a new or an empty folder")
    _LOG.info("writing the %s data set to %s: %d images", kind, root, images)
    temporary = root.parent / f".{root.name}-{uuid.uuid4().hex[:12]}"
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with _workers(processes, images) as mapped:
            write(temporary, mapped)
        (temporary / marker_file).write_text(marker, encoding="utf-8")
        _publish(temporary, root, marker, marker_file)
    except BrokenProcessPool as error:
        needed = 'the call under `if __name__ == "__main__":`, enough memory, or processes=1'
        raise InputError(f"writing {root}", found="a drawing process ended early", needed=needed) from error
    except OSError as error:
        raise InputError(root, found=f"writing failed: {error}", needed="a writable folder with 40 MB free") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return root


def _marker(root: Path, file: str = MARKER) -> str | None:
    """What the marker file says, or None where there is none."""
    path = root / file
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _publish(temporary: Path, root: Path, marker: str, file: str = MARKER) -> None:
    """Put the finished folder in place; where another process was first with the same set, keep that one."""
    old = root.parent / f"{temporary.name}-old"
    try:
        if root.exists() and _marker(root, file) != marker:
            root.rename(old)
        temporary.rename(root)
    except OSError:
        if _marker(root, file) != marker:
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _workers(processes: int | None, images: int) -> Iterator[Map]:
    """A map over the drawing processes; this one alone where a pool would not pay or is not allowed."""
    if processes is None:
        processes = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = min(processes, images // 50, 16)
    if processes < 2 or multiprocessing.current_process().daemon:
        yield map
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        yield partial(pool.map, chunksize=8)


def _write_detection(root: Path, split: str, seed: int, images: int, mapped: Map) -> None:
    """Pictures and annotations of one split, in VOC and in COCO form."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main", "annotations"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    names = [f"{split}_{index:06d}" for index in range(images)]
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    drawn = mapped(partial(_write_image, root, split, seed), range(images))
    pictures, annotations = [], []
    for index, (name, ((h, w), objects)) in enumerate(zip(names, drawn, strict=True)):
        image_id = _FIRST_IMAGE_ID[split] + index
        pictures.append({"id": image_id, "file_name": f"{name}.jpg", "width": w, "height": h})
        for item in objects:
            x1, y1, x2, y2 = item.box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": CATEGORY_IDS[item.label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": item.area,
                    "iscrowd": int(item.crowd),
                }
            )
    content = {
        "info": {"description": "shapes, the embedded data set of resdet", "version": str(VERSION), "seed": seed},
        "images": pictures,
        "annotations": annotations,
        "categories": [
            {"id": number, "name": name, "supercategory": "scene" if name in SCENE_CLASSES else "toy"}
            for number, name in zip(CATEGORY_IDS, CLASSES, strict=True)
        ],
    }
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")


def _write_image(root: Path, split: str, seed: int, index: int) -> tuple[tuple[int, int], tuple[SceneObject, ...]]:
    """Draw one picture and write it with its VOC file; returns what the COCO file needs to know."""
    scene = draw_scene((seed, _STREAMS[split], index))
    name = f"{split}_{index:06d}"
    (root / "JPEGImages" / f"{name}.jpg").write_bytes(encode_jpeg(scene.image))
    (root / "Annotations" / f"{name}.xml").write_text(_voc_xml(name, scene), encoding="utf-8")
    return scene.image.shape[:2], scene.objects


def _voc_xml(name: str, scene: Scene) -> str:
    """The VOC annotation file: boxes count pixels from 1 and include the last one."""
    h, w = scene.image.shape[:2]
    objects = "".join(
        f"  <object>\n    <name>{CLASSES[item.label]}</name>\n    <pose>Unspecified</pose>\n"
        f"    <truncated>{item.truncated:d}</truncated>\n"
        f"    <difficult>{item.crowd or item.visible < DIFFICULT_BELOW:d}</difficult>\n"
        f"    <bndbox><xmin>{item.box[0] + 1}</xmin><ymin>{item.box[1] + 1}</ymin>"
        f"<xmax>{item.box[2]}</xmax><ymax>{item.box[3]}</ymax></bndbox>\n  </object>\n"
        for item in scene.objects
    )
    return (
        f"<annotation>\n  <folder>shapes</folder>\n  <filename>{name}.jpg</filename>\n"
        f"  <size><width>{w}</width><height>{h}</height><depth>3</depth></size>\n  <segmented>0</segmented>\n"
        f"{objects}</annotation>\n"
    )


def _write_crops(folder: Path, stream: str, seed: int, per_class: int, mapped: Map) -> None:
    """Fill one folder per class with the first ``per_class`` crops of it, scene after scene."""
    missing = dict.fromkeys(CLASSES, per_class)
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    indices = count()
    while any(missing.values()):
        block = list(islice(indices, max(missing.values())))
        drawn = mapped(partial(_draw_crops, stream, seed), block)
        for index, crops in zip(block, drawn, strict=True):
            for number, (label, content) in enumerate(crops):
                name = CLASSES[label]
                if missing[name]:
                    missing[name] -= 1
                    (folder / name / f"{index:05d}_{number}.jpg").write_bytes(content)


def _draw_crops(stream: str, seed: int, index: int) -> list[tuple[int, bytes]]:
    """Label and JPEG of a square around each well visible object of one scene.

    Orbs and sails get a wider square than toys, since only the landscape beyond their plate names them.
    """
    entropy = (seed, _STREAMS[stream], index)
    scene, rng = draw_scene(entropy), np.random.default_rng([*entropy, 4])
    found = []
    for item in scene.objects:
        x1, y1, x2, y2 = item.box
        longer = max(x2 - x1, y2 - y1)
        zoom = rng.uniform(2.5, 3.2) if CLASSES[item.label] in SCENE_CLASSES else rng.uniform(1.2, 1.8)
        shift = rng.uniform(-0.08, 0.08, 2)
        if item.crowd or item.visible < 0.6 or longer < 18:
            continue
        side = round(longer * zoom)
        x, y = round((x1 + x2 - side) / 2 + shift[0] * side), round((y1 + y2 - side) / 2 + shift[1] * side)
        h, w = scene.image.shape[:2]  # move the square into the image, or over it where it is larger
        x, y = (int(np.clip(at, *sorted((0, full - side)))) for at, full in ((x, w), (y, h)))
        framed = cv2.copyMakeBorder(scene.image, side, side, side, side, cv2.BORDER_REFLECT)
        square = framed[y + side : y + 2 * side, x + side : x + 2 * side]
        how = cv2.INTER_AREA if side > CROP_SIDE else cv2.INTER_CUBIC
        found.append((item.label, encode_jpeg(cv2.resize(square, (CROP_SIDE, CROP_SIDE), interpolation=how))))
    return found


def encode_jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes()
