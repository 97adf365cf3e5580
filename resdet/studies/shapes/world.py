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
from functools import partial
from itertools import count, islice
from pathlib import Path

import cv2
import numpy as np

from resdet.studies.shapes.scene import CLASSES, DIFFICULT_BELOW, SCENE_CLASSES, Scene, SceneObject, draw_scene
from resdet.studies.shapes.writing import Map, encode_jpeg, nested, size_element, voc_xml, write_once

__all__ = ["CATEGORY_IDS", "CLASSES", "SCENE_CLASSES", "VERSION", "write_shapes"]

VERSION = 2
"""Raised with every change of the pictures; a data set of another version is written anew."""
CATEGORY_IDS = (1, 2, 3, 5, 6, 7, 9, 10, 13, 14)
"""Ids of the COCO form, with holes like COCO's own, so that a mix-up of ids and labels shows."""
CROP_SIDE = 64
_STREAMS = {"train": 0, "val": 1, "crops/train": 2, "crops/val": 3}
_FIRST_IMAGE_ID = {"train": 1, "val": 1_000_001}


def write_shapes(
    root: str | Path = "data/shapes",
    *,
    seed: int = 0,
    train: int = 1200,
    val: int = 200,
    crops_per_class: int = 240,
    processes: int | None = None,
) -> Path:
    """Write the data set, unless it is there already; see :func:`resdet.studies.shapes.writing.write_once`.

    Args:
        root: folder of the data set.
        seed: of everything in it.
        train: images of the training split.
        val: images of the validation split.
        crops_per_class: training crops of each class; a fifth as many for validation.
        processes: drawing processes; every core where None.

    Raises:
        InputError: an argument is out of range, ``root`` holds something else, or it cannot be written.
    """
    numbers = {"seed": seed, "train": train, "val": val, "crops_per_class": crops_per_class}

    def write(temporary: Path, mapped: Map) -> None:
        for split, images in (("train", train), ("val", val)):
            _write_detection(temporary, split, seed, images, mapped)
        for split, crops in (("train", crops_per_class), ("val", crops_per_class // 5)):
            _write_crops(temporary / "crops" / split, f"crops/{split}", seed, crops, mapped)

    return write_once(Path(root), write, kind="shapes", version=VERSION, numbers=numbers, processes=processes)


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
    (root / "Annotations" / f"{name}.xml").write_text(_voc(name, scene), encoding="utf-8")
    return scene.image.shape[:2], scene.objects


def _voc(name: str, scene: Scene) -> str:
    """The VOC annotation file: boxes count pixels from 1 and include the last one."""
    objects = []
    for item in scene.objects:
        x1, y1, x2, y2 = item.box
        objects.append(
            {
                "name": CLASSES[item.label],
                "pose": "Unspecified",
                "truncated": int(item.truncated),
                "difficult": int(item.crowd or item.visible < DIFFICULT_BELOW),
                "bndbox": nested({"xmin": x1 + 1, "ymin": y1 + 1, "xmax": x2, "ymax": y2}),
            }
        )
    size = size_element(scene.image)
    return voc_xml({"folder": "shapes", "filename": f"{name}.jpg", "size": size, "segmented": 0}, objects)


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
