"""The embedded set for localization: one dominant object in each image, in ILSVRC's folders, written at first use.

The object's longer side is a third to four fifths of the image's shorter one. It stands anywhere, is squeezed, cut by
the border now and then, sometimes has a smaller fellow of its class, and lies among small things of no class on a
mottled ground. Ten of the classes are two patterns of one shape each, so that a net can take one for the other. A
twentieth of the training images have no annotation file (of ILSVRC's, more than half). Image i of a split is a function
of (seed, split, i) alone, so a larger set begins with the smaller one.

    root/Data/CLS-LOC/{train,val}/<class>/*.JPEG      the images, also for classification
    root/Annotations/CLS-LOC/train/<class>/*.xml
    root/Annotations/CLS-LOC/val/*.xml
    root/ImageSets/CLS-LOC/{train_cls,train_loc,val}.txt
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from resdet.studies.shapes.outlines import NEUTRALS, TOY_COLOURS, Rng, jitter
from resdet.studies.shapes.scene import claim, develop, paste
from resdet.studies.shapes.sprites import Sprite, draw_sprite, noise
from resdet.studies.shapes.writing import Map, encode_jpeg, nested, size_element, voc_xml, write_once

VERSION = 1
"""Raised with every change of the pictures; a data set of another version is written anew."""
PATTERNED = ("block", "crescent", "heart", "ring", "star")
SPRITES = {f"{kind}_{pattern}": (kind, pattern) for kind in PATTERNED for pattern in ("dots", "stripes")}
SPRITES |= {kind: (kind, None) for kind in ("fish", "flower", "mushroom", "orb", "sail")}
CLASSES = tuple(sorted(SPRITES))
DISTRACTORS = ("pebble", "pebble", "rod", "rod", "plate")
SHAPES_HW = ((128, 160), (128, 160), (160, 128), (112, 160), (144, 144), (128, 176))
SIZES = (0.35, 0.8)
"""Longer side of the whole object, as a share of the image's shorter side."""
MIN_VISIBLE = 0.6
"""Share of its pixels that every object shows at least."""
UNANNOTATED = 0.05
"""Share of the training images without an annotation file."""
_STREAMS = {"train": 0, "val": 1}
_TASK = "CLS-LOC"
_NO_TINT = np.ones(3, np.float32)


class LocScene(NamedTuple):
    """A drawn picture and what is in it."""

    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    boxes: np.ndarray
    """(G, 4) int64 xyxy, G of 1 or 2: the extents of the visible pixels, the dominant object first."""


def write_shapes_loc(
    root: str | Path = "data/shapes_loc",
    *,
    seed: int = 0,
    train: int = 3000,
    val: int = 495,
    processes: int | None = None,
) -> Path:
    """Write the data set, unless it is there already; classes take turns.

    Arguments and errors are those of :func:`resdet.studies.shapes.world.write_shapes`.
    """

    def write(temporary: Path, mapped: Map) -> None:
        for split, images in (("train", train), ("val", val)):
            _write_split(temporary, split, seed, images, mapped)

    kind = {"kind": "shapes_loc", "version": VERSION, "least_images": len(CLASSES)}
    numbers = {"seed": seed, "train": train, "val": val}
    return write_once(Path(root), write, **kind, numbers=numbers, processes=processes)


def draw_loc_scene(label: int, entropy: tuple[int, ...]) -> LocScene:
    """Draw one picture, a function of its arguments alone.

    Args:
        label: index into :data:`CLASSES`.
        entropy: non-negative integers that seed it, as (seed, split, index).
    """
    for attempt in range(100):
        scene = _draw(label, np.random.default_rng([*entropy, attempt]))
        if scene is not None:
            return scene
    raise RuntimeError(f"no visible object in 100 pictures of {entropy}")


def _draw(label: int, rng: Rng) -> LocScene | None:
    """A picture; None where other things hide its object."""
    h, w = hw = SHAPES_HW[rng.integers(len(SHAPES_HW))]
    angle, lift = rng.uniform(np.pi * 1.1, np.pi * 1.6), rng.uniform(0.75, 1.0)
    light = np.array((np.cos(angle), np.sin(angle), lift)) / np.hypot(1, lift)
    canvas = _ground(hw, rng)
    owner = np.zeros(hw, np.int16)  # 1 + index of the object on top of each pixel

    def scatter(count: int, largest: float) -> None:
        for _ in range(count):
            thing = draw_sprite(str(rng.choice(DISTRACTORS)), rng.uniform(8, largest), light=light, rng=rng)
            x, y = rng.uniform(0, w), rng.uniform(0, h)
            paste(canvas, thing, x, y, light, _NO_TINT)
            claim(owner, thing, x, y, 0)

    scatter(int(rng.integers(2, 6)), 34)
    size = rng.uniform(*SIZES) * min(hw)
    fellow = [rng.uniform(0.3, 0.55) * size] if rng.random() < 0.15 else []
    taken: list[tuple[float, float, np.ndarray]] = []
    whole = []
    for index, side in enumerate([size, *fellow]):
        kind, pattern = SPRITES[CLASSES[label]]
        sprite = _squeezed(draw_sprite(kind, side, light=light, rng=rng, pattern=pattern), rng)
        reach = np.array(sprite.alpha.shape) / 2
        margin = reach * (0.6 if rng.random() < 0.2 else 1)  # the border may cut it
        y, x = (rng.uniform(m, n - m) for m, n in zip(margin, hw, strict=True))
        if any(((abs(y - v), abs(x - u)) < reach + other).all() for v, u, other in taken):
            continue  # no room for a fellow
        taken.append((y, x, reach))
        paste(canvas, sprite, x, y, light, _NO_TINT)
        whole.append(claim(owner, sprite, x, y, index + 1))
    scatter(int(rng.integers(0, 2)), 16)
    boxes = []
    for index, pixels in enumerate(whole):
        rows, columns = np.nonzero(owner == index + 1)
        if len(rows) < MIN_VISIBLE * pixels:
            return None
        boxes.append((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
    return LocScene(develop(canvas, rng), np.array(boxes, dtype=np.int64))


def _squeezed(sprite: Sprite, rng: Rng) -> Sprite:
    """The sprite, mostly narrower or lower by up to a half, so that boxes have many aspects."""
    if rng.random() < 0.3:
        return sprite
    scale = np.ones(2)
    scale[rng.integers(2)] = rng.uniform(0.5, 1)
    h, w = (max(3, round(side * factor)) for side, factor in zip(sprite.alpha.shape, scale, strict=True))
    planes = [cv2.resize(plane, (w, h), interpolation=cv2.INTER_AREA) for plane in (*sprite.rgb, sprite.alpha)]
    return Sprite(np.stack(planes[:3]), planes[3])


def _ground(hw: tuple[int, int], rng: Rng) -> np.ndarray:
    """(3, H, W) float32: two muted colours that run into each other, under blurred patches and a fine grain."""
    first, second, third = (
        0.55 * jitter(rng, TOY_COLOURS[rng.integers(len(TOY_COLOURS))]) + 0.45 * NEUTRALS[rng.integers(len(NEUTRALS))]
        for _ in range(3)
    )
    blend = np.clip((noise(rng, hw, 60, octaves=2) - 0.5) * 2 + 0.5, 0, 1)
    patches = np.clip((noise(rng, hw, 26, octaves=2, stretch=float(rng.uniform(0.6, 1.8))) - 0.58) * 8, 0, 1)
    grain = 0.75 + 0.5 * noise(rng, hw, 8, octaves=2)
    canvas = first[:, None, None] + (second - first)[:, None, None] * blend
    canvas += (third[:, None, None] - canvas) * (0.8 * patches)
    return (canvas * grain).astype(np.float32)


def _write_split(root: Path, split: str, seed: int, images: int, mapped: Map) -> None:
    """Pictures, annotation files and lists of one split."""
    data, annotations, lists = (root / part / _TASK for part in ("Data", "Annotations", "ImageSets"))
    for name in CLASSES:
        (data / split / name).mkdir(parents=True)
        (annotations / split / (name if split == "train" else "")).mkdir(parents=True, exist_ok=True)
    lists.mkdir(parents=True, exist_ok=True)
    names = [f"{CLASSES[index % len(CLASSES)]}/{split}_{index:06d}" for index in range(images)]
    annotated = list(mapped(partial(_write_image, root, split, seed), range(images)))
    if split == "train":
        found = {"train_cls": names, "train_loc": [name for name, kept in zip(names, annotated, strict=True) if kept]}
    else:
        found = {split: [name.rpartition("/")[2] for name in names]}
    for file, listed in found.items():
        lines = "".join(f"{name} {number}\n" for number, name in enumerate(listed, 1))
        (lists / f"{file}.txt").write_text(lines, encoding="utf-8")


def _write_image(root: Path, split: str, seed: int, index: int) -> bool:
    """Draw one picture and write it; returns whether it has an annotation file."""
    label = index % len(CLASSES)
    entropy = (seed, _STREAMS[split], index)
    scene = draw_loc_scene(label, entropy)
    name = f"{split}_{index:06d}"
    (root / "Data" / _TASK / split / CLASSES[label] / f"{name}.JPEG").write_bytes(encode_jpeg(scene.image))
    if split == "train" and np.random.default_rng([*entropy, 1000]).random() < UNANNOTATED:
        return False
    folder = root / "Annotations" / _TASK / split / (CLASSES[label] if split == "train" else "")
    (folder / f"{name}.xml").write_text(_xml(name, CLASSES[label], scene), encoding="utf-8")
    return True


def _xml(name: str, label: str, scene: LocScene) -> str:
    """ILSVRC's annotation file: pixels count from 0, and the last one is included."""
    objects = [
        {"name": label, "difficult": 0, "bndbox": nested({"xmin": x1, "ymin": y1, "xmax": x2 - 1, "ymax": y2 - 1})}
        for x1, y1, x2, y2 in scene.boxes.tolist()
    ]
    return voc_xml({"filename": name, "size": size_element(scene.image)}, objects)
