"""One picture of the shapes world: a landscape by day or night, on land or sea, with toys, clutter and plates in it.

Two sprites stand on neutral plates and are named by the landscape alone: an ``orb`` is a *sun* by day and a *moon* by
night, a ``sail`` is a *boat* at sea and a *tent* on land. The four streams of random numbers (layout, landscape,
things, grain) are separate, and neither the layout nor anything on a plate depends on the landscape: the same picture
drawn by day and by night agrees pixel for pixel inside every free plate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from resdet.studies.shapes.landscape import draw_landscape
from resdet.studies.shapes.outlines import CLUTTER, Rng
from resdet.studies.shapes.sprites import Sprite, draw_sprite

CLASSES = ("star", "heart", "ring", "flower", "mushroom", "fish", "sun", "moon", "boat", "tent")
SCENE_CLASSES = ("sun", "moon", "boat", "tent")
"""Classes that only the landscape tells apart: sun from moon, boat from tent."""
TOYS = CLASSES[:6]
SIZES = (15.0, 120.0)
"""Longer side of a whole object, in pixels: an 8-fold range."""
PLATED_SIZES = (18.0, 64.0)
"""The same for orbs and sails; their plates are 1.6 to 1.9 times as large."""
SHAPES_HW = ((192, 256), (192, 256), (192, 256), (256, 192), (160, 256), (208, 208), (176, 288))
MIN_VISIBLE, DIFFICULT_BELOW = 0.25, 0.45
"""Visible shares below which an object is not annotated at all, and below which it is *difficult*."""

_NIGHT_TOYS = np.array((0.66, 0.68, 0.86), np.float32)


class SceneObject(NamedTuple):
    """One annotation of a scene."""

    label: int
    """Index into :data:`CLASSES`."""
    box: tuple[int, int, int, int]
    """xyxy extent of the visible pixels, inside the image, in whole pixels."""
    area: int
    """Number of visible pixels."""
    visible: float
    """Visible share of its pixels, in [MIN_VISIBLE, 1]."""
    truncated: bool
    """Whether the image border cuts it."""
    crowd: bool
    """Whether this is a group of many under one box."""


@dataclass(frozen=True)
class Scene:
    """A drawn picture and its annotations."""

    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    objects: tuple[SceneObject, ...]
    night: bool
    sea: bool


class _Placed(NamedTuple):
    """A thing of the layout. ``x`` and ``y`` are its centre; a crowd has ``members`` > 1."""

    kind: str
    size: float
    x: float
    y: float
    plate: float | None
    members: int = 1


def scene_label(kind: str, *, night: bool, sea: bool) -> int:
    """Class of a sprite in a landscape."""
    name = {"orb": "moon" if night else "sun", "sail": "boat" if sea else "tent"}.get(kind, kind)
    return CLASSES.index(name)


def draw_scene(entropy: Sequence[int], *, night: bool | None = None, sea: bool | None = None) -> Scene:
    """Draw one picture, a function of its arguments alone.

    Args:
        entropy: non-negative integers that seed it, as (seed, split, index).
        night: forces night or day; drawn by lot where None.
        sea: forces sea or land; drawn by lot where None.

    Returns:
        The picture with 0 to 9 objects and sometimes one crowd.
    """
    layout, land, things, grain = (np.random.default_rng([*entropy, stream]) for stream in range(4))
    by_lot = layout.random(2) < 0.5
    night, sea = bool(by_lot[0]) if night is None else night, bool(by_lot[1]) if sea is None else sea
    hw = SHAPES_HW[layout.integers(len(SHAPES_HW))]
    angle, lift = layout.uniform(np.pi * 1.1, np.pi * 1.6), layout.uniform(0.75, 1.0)
    light = np.array((np.cos(angle), np.sin(angle), lift)) / np.hypot(1, lift)
    placed = _arrange(hw, layout)
    canvas = draw_landscape(hw, night=night, sea=sea, rng=land)
    owner = np.zeros(hw, np.int16)  # 1 + index of the thing on top of each pixel
    whole = np.zeros(len(placed), np.int64)
    tint = _NIGHT_TOYS if night else np.ones(3, np.float32)
    for index, thing in enumerate(placed):
        if thing.plate is not None:
            plate = draw_sprite("plate", thing.plate, light=light, rng=things)
            paste(canvas, plate, thing.x, thing.y, light, np.ones(3, np.float32))
            claim(owner, plate, thing.x, thing.y, 0)
        for _ in range(thing.members):
            sprite = draw_sprite(thing.kind, thing.size, light=light, rng=things)
            spread = things.uniform(-1, 1, 2) * thing.size * 0.42 * thing.members**0.5 * (thing.members > 1)
            x, y = thing.x + spread[0], thing.y + spread[1]
            paste(canvas, sprite, x, y, light, tint if thing.plate is None else np.ones(3, np.float32))
            whole[index] += claim(owner, sprite, x, y, index + 1)
    found = [_annotate(owner, index, thing, whole[index], night, sea) for index, thing in enumerate(placed)]
    return Scene(develop(canvas, grain), tuple(item for item in found if item is not None), night, sea)


def _arrange(hw: tuple[int, int], rng: Rng) -> list[_Placed]:
    """Choose things and places, in drawing order: clutter first, then the large mostly before the small."""
    h, w = hw
    count = 0 if rng.random() < 0.03 else int(rng.choice(np.arange(1, 10), p=_COUNTS))
    clutter = [
        _Placed(str(rng.choice(CLUTTER)), float(rng.uniform(10, 46)), rng.uniform(0, w), rng.uniform(0, h), None)
        for _ in range(rng.integers(3, 11))
    ]
    if rng.random() < 0.12:
        size = float(rng.uniform(24, 60))
        clutter.append(_Placed("pebble", size * 0.4, rng.uniform(0, w), rng.uniform(0, h), size))
    kinds = [str(rng.choice([*TOYS, "orb", "sail"], p=_SHARES)) for _ in range(count)]
    wanted = []
    for kind in kinds:
        plated = kind in ("orb", "sail")
        size = float(np.exp(rng.uniform(*np.log(PLATED_SIZES if plated else SIZES))))
        plate = size * float(rng.uniform(1.6, 1.9)) if plated else None
        wanted.append(_Placed(kind, size, 0, 0, plate))
    if count and rng.random() < 0.05:
        wanted.append(_Placed(str(rng.choice(TOYS)), float(rng.uniform(13, 19)), 0, 0, None, int(rng.integers(7, 13))))
    wanted.sort(key=lambda thing: -(thing.plate or thing.size) * rng.uniform(0.4, 1))
    placed: list[_Placed] = []
    for thing in wanted:
        reach = (thing.plate or thing.size * 0.95 * thing.members**0.5) / 2
        crossing = rng.random() < 0.25  # may be cut by the border
        touching = 0.65 if rng.random() < 0.3 else 0.15  # how much of the smaller one may be covered
        for _ in range(40):
            margin = 0.2 * reach if crossing else reach + 2
            x, y = (rng.uniform(min(margin, side / 2), max(side - margin, side / 2)) for side in (w, h))
            spot = thing._replace(x=float(x), y=float(y))
            if all(_overlap(spot, other) <= touching for other in placed):
                placed.append(spot)
                break
    return clutter + placed


_COUNTS = np.array([8, 14, 18, 18, 14, 11, 8, 5, 4]) / 100
_SHARES = np.array([1, 1, 1, 1, 1, 1, 2.2, 2.2]) / 10.4
"""Orbs and sails make two classes each, so they are drawn twice as often, and a little more, as plates need room."""


def _overlap(a: _Placed, b: _Placed) -> float:
    """Shared area of the footprints over the smaller of the two."""
    reaches = [(thing.plate or thing.size * 0.95 * thing.members**0.5) / 2 for thing in (a, b)]
    sides = [
        max(0.0, min(p + reaches[0], q + reaches[1]) - max(p - reaches[0], q - reaches[1]))
        for p, q in ((a.x, b.x), (a.y, b.y))
    ]
    return sides[0] * sides[1] / (4 * min(reaches) ** 2)


def _annotate(owner: np.ndarray, index: int, thing: _Placed, whole: int, night: bool, sea: bool) -> SceneObject | None:
    """The annotation of a thing, or None for clutter and for what is hardly visible."""
    if thing.kind in CLUTTER:
        return None
    rows, columns = np.nonzero(owner == index + 1)
    visible = len(rows) / max(int(whole), 1)
    if visible < MIN_VISIBLE or min(np.ptp(rows), np.ptp(columns)) < 5:
        return None
    box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
    h, w = owner.shape
    reach = thing.size / 2 + 1
    truncated = thing.x < reach or thing.y < reach or thing.x > w - reach or thing.y > h - reach
    at_border = box[0] == 0 or box[1] == 0 or box[2] == w or box[3] == h
    label = scene_label(thing.kind, night=night, sea=sea)
    return SceneObject(label, box, len(rows), round(visible, 3), bool(truncated and at_border), thing.members > 1)


def _window(hw: tuple[int, int], sprite: Sprite, x: float, y: float) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a sprite centred at (x, y) falls: rows and columns of the image, and those of the sprite."""
    starts = [round(centre - side / 2) for centre, side in zip((y, x), sprite.alpha.shape, strict=True)]
    ends = [min(full, start + side) for start, side, full in zip(starts, sprite.alpha.shape, hw, strict=True)]
    spans = [(start, max(start, 0), max(start, end, 0)) for start, end in zip(starts, ends, strict=True)]
    there = tuple(slice(low, high) for _, low, high in spans)
    return there, tuple(slice(low - start, high - start) for start, low, high in spans)


def paste(canvas: np.ndarray, sprite: Sprite, x: float, y: float, light: np.ndarray, tint: np.ndarray) -> None:
    """Lay a sprite and its soft shadow on the canvas, in place."""
    size = max(sprite.alpha.shape)
    pad = int(0.16 * size) + 3
    wide = cv2.copyMakeBorder(sprite.alpha, *[pad] * 4, cv2.BORDER_CONSTANT)
    soft = cv2.GaussianBlur(wide, (0, 0), 0.05 * size + 0.6)
    shadow = Sprite(soft, soft)
    throw = 0.09 * size / light[2]
    there, here = _window(canvas.shape[1:], shadow, x - light[0] * throw, y - light[1] * throw)
    canvas[(slice(None), *there)] *= 1 - 0.42 * soft[here]
    there, here = _window(canvas.shape[1:], sprite, x, y)
    canvas[(slice(None), *there)] = (
        canvas[(slice(None), *there)] * (1 - sprite.alpha[here])
        + sprite.rgb[(slice(None), *here)] * tint[:, None, None]
    )


def claim(owner: np.ndarray, sprite: Sprite, x: float, y: float, mark: int) -> int:
    """Mark the pixels that a sprite covers by half or more; returns how many it has, also outside the image."""
    there, here = _window(owner.shape, sprite, x, y)
    owner[there][sprite.alpha[here] >= 0.5] = mark
    return int((sprite.alpha >= 0.5).sum())


def develop(canvas: np.ndarray, rng: Rng) -> np.ndarray:
    """Vignette and film grain, the same in every landscape; then 8 bits."""
    h, w = canvas.shape[1:]
    y, x = np.linspace(-1, 1, h, dtype=np.float32)[:, None], np.linspace(-1, 1, w, dtype=np.float32)
    specks = cv2.GaussianBlur(rng.integers(0, 256, (h, w), np.uint8).astype(np.float32), (0, 0), 0.7) - 127.5
    developed = np.clip(canvas, 0, 1) * (255 - 18 * (x * x + y * y)) + 0.05 * specks
    return cv2.merge(list(np.clip(developed, 0, 255).round().astype(np.uint8)))
