"""The things of the shapes world, each drawn as a small inflated relief: outline, paint, light.

A sprite knows nothing of the scene it will stand in: ``sun`` and ``moon`` are both the sprite ``orb``, ``boat`` and
``tent`` both ``sail``, so their pixels cannot tell which of the two a scene makes of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

Rng = np.random.Generator
Colour = np.ndarray
"""(3,) float32 RGB in [0, 1]."""

TOY_COLOURS = np.array(
    [
        (0.90, 0.27, 0.25),
        (0.96, 0.55, 0.19),
        (0.98, 0.79, 0.26),
        (0.49, 0.76, 0.31),
        (0.15, 0.66, 0.58),
        (0.23, 0.60, 0.89),
        (0.36, 0.38, 0.82),
        (0.66, 0.38, 0.83),
        (0.93, 0.45, 0.67),
        (0.97, 0.94, 0.88),
    ],
    np.float32,
)
CREAM = np.array((0.97, 0.91, 0.78), np.float32)
NEUTRALS = np.array([(0.88, 0.87, 0.85), (0.70, 0.69, 0.68), (0.50, 0.50, 0.51), (0.27, 0.27, 0.29)], np.float32)


class Sprite(NamedTuple):
    """A drawn thing, cut out along its edge."""

    rgb: np.ndarray
    """(3, h, w) float32 in [0, 1], multiplied by alpha."""
    alpha: np.ndarray
    """(h, w) float32 in [0, 1]."""


class Part(NamedTuple):
    """One inflated piece; later parts lie on earlier ones."""

    polygons: list[np.ndarray]
    """Outlines (m, 2), x right and y down; areas covered twice are holes."""
    colours: tuple[Colour, Colour]
    bevel: float
    """Width of the rounded rim, as a share of half the sprite's size."""
    pattern: str = "plain"


def noise(rng: Rng, hw: tuple[int, int], cell: float, *, octaves: int = 3, stretch: float = 1.0) -> np.ndarray:
    """Smooth random field, (H, W) float32 about in [0, 1]: a sum of random grids, each finer and weaker than the last.

    Args:
        rng: source of the grids.
        hw: size of the field.
        cell: pixels between the knots of the coarsest grid, vertically.
        octaves: number of grids; each halves the cell and the weight.
        stretch: horizontal cell over the vertical one.
    """
    field, weight = np.zeros(hw, np.float32), 0.0
    for octave in range(octaves):
        rows, columns = (
            max(2, round(side * 2**octave / step) + 1) for side, step in zip(hw, (cell, cell * stretch), strict=True)
        )
        grid = rng.random((rows, columns), np.float32)
        if cell > 16 * 2**octave:  # smooth enough to be interpolated at a quarter of the size first, which is faster
            grid = cv2.resize(grid, (hw[1] // 4, hw[0] // 4), interpolation=cv2.INTER_CUBIC)
        how = cv2.INTER_LINEAR if cell > 16 * 2**octave else cv2.INTER_CUBIC
        field += cv2.resize(grid, hw[::-1], interpolation=how) * 0.5**octave
        weight += 0.5**octave
    return np.clip((field / weight - 0.5) * 1.6 + 0.5, 0, 1)


def jitter(rng: Rng, colour: Colour, amount: float = 0.05) -> Colour:
    """The colour, a little off."""
    return np.clip(colour + rng.uniform(-amount, amount, 3), 0, 1).astype(np.float32)


def draw_sprite(kind: str, size: float, *, light: np.ndarray, rng: Rng, pattern: str | None = None) -> Sprite:
    """Draw one thing.

    Args:
        kind: a key of :data:`OUTLINES`.
        size: longer side of its bounding box in pixels.
        light: (3,) unit vector towards the light; x right, y down, z out of the picture.
        rng: source of colours, pattern, pose and proportions.
        pattern: plain, stripes, dots, fade or mottled, for every part of it; None leaves that to the maker.

    Returns:
        The sprite, cut to its bounding box (one pixel of margin for the anti-aliased edge).
    """
    make, tilt = OUTLINES[kind]
    parts = make(rng)
    if pattern is not None:
        parts = [part._replace(pattern=pattern) for part in parts]
    return _relief(parts, size, np.deg2rad(rng.uniform(-tilt, tilt)), light, rng)


def _relief(parts: list[Part], size: float, angle: float, light: np.ndarray, rng: Rng) -> Sprite:
    """Rasterise each outline several times too large, average it down, inflate it and light it."""
    fine = 4 if size < 32 else 3 if size < 64 else 2
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    outlines = [[polygon @ turn for polygon in part.polygons] for part in parts]
    points = np.concatenate([polygon for outline in outlines for polygon in outline])
    low, high = points.min(0), points.max(0)
    unit, half = size / (high - low).max(), size / 2
    w, h = (int(side) for side in np.ceil((high - low) * unit) + 2)
    origin = ((w, h) - (high - low) * unit) / 2
    x, y = (np.arange(w) + 0.5 - origin[0]) / unit + low[0], (np.arange(h) + 0.5 - origin[1]) / unit + low[1]
    u, v = np.meshgrid(x.astype(np.float32), y.astype(np.float32))
    halfway = light + np.array((0, 0, 1))
    lights = np.stack([light, halfway / np.linalg.norm(halfway)]).tolist()  # Python numbers keep the arrays float32
    rgb, alpha = np.zeros((3, h, w), np.float32), np.zeros((h, w), np.float32)
    for part, outline in zip(parts, outlines, strict=True):
        mask = np.zeros((h * fine, w * fine), np.uint8)
        cv2.fillPoly(mask, [np.round(((p - low) * unit + origin) * fine - 0.5).astype(np.int32) for p in outline], 255)
        depth = cv2.distanceTransform(mask, cv2.DIST_L2, 5)
        cover = cv2.resize(mask, (w, h), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        rim = np.minimum(cv2.resize(depth, (w, h), interpolation=cv2.INTER_AREA) / (fine * half * part.bevel), 1)
        height = np.sqrt(rim * (2 - rim)) * (half * min(part.bevel, 0.6))  # a quarter circle in profile
        height = cv2.GaussianBlur(height, (0, 0), max(0.05 * half, 0.4))
        dx, dy = cv2.Sobel(height, -1, 1, 0, scale=1 / 8), cv2.Sobel(height, -1, 0, 1, scale=1 / 8)
        length = np.sqrt(dx * dx + dy * dy + 1)
        facing, mirror = (np.maximum((z - dx * x - dy * y) / length, 0) for x, y, z in lights)
        shade = 0.50 + 0.62 * facing - 0.22 * (1 - rim) ** 2
        first, second = (colour[:, None, None] for colour in part.colours)
        paint = first + (second - first) * _PATTERNS[part.pattern](u, v, rng)
        lit = np.clip(paint * shade + 0.42 * cv2.pow(mirror, 40), 0, 1)
        rgb += (lit - rgb) * cover
        alpha = np.maximum(alpha, cover)
    return Sprite(rgb, alpha)


def _smooth(x: np.ndarray, low: float, high: float) -> np.ndarray:
    t = np.clip((x - low) / (high - low), 0, 1).astype(np.float32)
    return t * t * (3 - 2 * t)


def _stripes(u: np.ndarray, v: np.ndarray, rng: Rng) -> np.ndarray:
    angle, frequency, phase = rng.uniform(0, np.pi), rng.uniform(7, 12), rng.uniform(0, 2 * np.pi)
    return _smooth(np.sin(frequency * (u * np.cos(angle) + v * np.sin(angle)) + phase), 0.1, 0.4)


def _dots(u: np.ndarray, v: np.ndarray, rng: Rng) -> np.ndarray:
    pitch = rng.uniform(0.42, 0.6)
    row = np.floor(v / pitch)
    x, y = (u / pitch + 0.5 * (row % 2)) % 1 - 0.5, (v / pitch) % 1 - 0.5
    return 1 - _smooth(np.hypot(x, y), 0.24, 0.32)


def _fade(u: np.ndarray, v: np.ndarray, rng: Rng) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    return _smooth(u * np.cos(angle) + v * np.sin(angle), -0.8, 0.8)


def _mottled(u: np.ndarray, v: np.ndarray, rng: Rng) -> np.ndarray:
    return _smooth(noise(rng, u.shape, max(u.shape) / 3.5, octaves=2), 0.45, 0.8)


_PATTERNS: dict[str, Callable[[np.ndarray, np.ndarray, Rng], np.ndarray]] = {
    "plain": lambda u, v, rng: np.zeros_like(u),
    "stripes": _stripes,
    "dots": _dots,
    "fade": _fade,
    "mottled": _mottled,
}


def _two_colours(rng: Rng) -> tuple[Colour, Colour]:
    first, second = rng.choice(len(TOY_COLOURS), 2, replace=False)
    return jitter(rng, TOY_COLOURS[first]), jitter(rng, TOY_COLOURS[second])


def _any_pattern(rng: Rng) -> str:
    return str(rng.choice(["plain", "fade", "stripes", "dots"], p=[0.35, 0.25, 0.2, 0.2]))


def _polar(radius: np.ndarray | float, count: int = 96, *, centre: tuple[float, float] = (0, 0)) -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([radius * np.cos(t) + centre[0], radius * np.sin(t) + centre[1]], 1)


def _rounded(corners: np.ndarray | list[tuple[float, float]], radius: float) -> np.ndarray:
    """The polygon with each corner replaced by a quadratic arc that starts ``radius`` (share of the edge) before it."""
    p = np.asarray(corners, float)
    before, after = p + (np.roll(p, 1, 0) - p) * radius, p + (np.roll(p, -1, 0) - p) * radius
    t = np.linspace(0, 1, 7)[:, None, None]
    arc = (1 - t) ** 2 * before + 2 * t * (1 - t) * p + t**2 * after
    return arc.transpose(1, 0, 2).reshape(-1, 2)


def _star(rng: Rng) -> list[Part]:
    inner = rng.uniform(0.44, 0.54)
    angles = np.arange(10) * np.pi / 5 - np.pi / 2
    radii = np.where(np.arange(10) % 2, inner, 1.0)
    outline = _rounded(np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1), 0.16)
    return [Part([outline], _two_colours(rng), 0.4, _any_pattern(rng))]


def _heart(rng: Rng) -> list[Part]:
    t = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    outline = np.stack([16 * np.sin(t) ** 3, -y * rng.uniform(0.9, 1.15)], 1) / 16
    return [Part([outline], _two_colours(rng), 0.6, _any_pattern(rng))]


def _ring(rng: Rng) -> list[Part]:
    squash = np.array((1, rng.uniform(0.72, 1.0)))
    outlines = [_polar(1.0) * squash, _polar(rng.uniform(0.42, 0.55)) * squash]
    return [Part(outlines, _two_colours(rng), 0.28, _any_pattern(rng))]


def _flower(rng: Rng) -> list[Part]:
    petals, (petal, heart) = int(rng.integers(5, 8)), _two_colours(rng)
    t = np.linspace(0, 2 * np.pi, 140, endpoint=False)
    outline = _polar(0.55 + 0.45 * np.abs(np.cos(petals * t / 2)) ** 0.7, 140)
    eye = _polar(rng.uniform(0.26, 0.34), 40)
    return [Part([outline], (petal, petal * 0.75), 0.42), Part([eye], (heart, heart), 0.3)]


def _mushroom(rng: Rng) -> list[Part]:
    t = np.linspace(np.pi, 2 * np.pi, 40)
    droop = rng.uniform(0.08, 0.2)
    cap = np.concatenate(
        [np.stack([np.cos(t), np.sin(t) * rng.uniform(0.85, 1.1)], 1), [(0.9, droop), (0, droop * 1.4), (-0.9, droop)]]
    )
    wide = rng.uniform(0.26, 0.38)
    stem = _rounded([(-wide, 0), (wide, 0), (wide * 1.25, 0.9), (-wide * 1.25, 0.9)], 0.2)
    cream = jitter(rng, CREAM)
    first, second = _two_colours(rng)
    return [Part([stem], (cream, cream), 0.35), Part([cap], (first, second), 0.6, str(rng.choice(["dots", "plain"])))]


def _fish(rng: Rng) -> list[Part]:
    tall, (body, fin), way = rng.uniform(0.5, 0.68), _two_colours(rng), float(rng.choice([-1, 1]))
    flip = np.array((way, 1.0))
    t = np.linspace(0, 2 * np.pi, 80, endpoint=False)
    trunk = np.stack([0.72 * np.cos(t), tall * np.sin(t) * (1 + 0.25 * np.cos(t))], 1)
    tail = _rounded([(-0.5, 0), (-1.15, -0.55), (-0.98, 0), (-1.15, 0.55)], 0.15)
    crest = _rounded([(-0.35, -tall * 0.6), (0.0, -tall * 1.45), (0.35, -tall * 0.6)], 0.25)
    white, black = np.ones(3, np.float32), np.full(3, 0.08, np.float32)
    return [
        Part([tail * flip], (fin, fin), 0.25),
        Part([crest * flip], (fin, fin), 0.25),
        Part([trunk * flip], (body, fin), 0.55, str(rng.choice(["plain", "fade", "stripes"]))),
        Part([_polar(0.15, 30, centre=(0.4, -0.14)) * flip], (white, white), 0.15),
        Part([_polar(0.08, 30, centre=(0.43, -0.14)) * flip], (black, black), 0.1),
    ]


def _orb(rng: Rng) -> list[Part]:
    pale = jitter(rng, np.array((0.98, 0.86, 0.55), np.float32), 0.04)
    return [Part([_polar(1.0)], (pale, pale * np.array((0.88, 0.78, 0.68), np.float32)), 0.85, "mottled")]


def _sail(rng: Rng) -> list[Part]:
    foot, mast, colour = rng.uniform(0.75, 0.95), rng.uniform(-0.15, 0.15), _two_colours(rng)[0]
    left = _rounded([(mast - 0.02, -1), (mast - 0.02, 0.85), (-foot, 0.85), (-foot * 0.45, -0.2)], 0.08)
    right = _rounded([(mast + 0.02, -1), (foot * 0.45, -0.2), (foot, 0.85), (mast + 0.02, 0.85)], 0.08)
    cream = jitter(rng, CREAM, 0.03)
    return [Part([left], (cream, cream * 0.9), 0.4, "fade"), Part([right], (colour, colour * 0.8), 0.4, "fade")]


def _plate(rng: Rng) -> list[Part]:
    t = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    power = float(rng.choice([2.0, 4.0]))
    outline = _polar((np.abs(np.cos(t)) ** power + np.abs(np.sin(t)) ** power) ** (-1 / power), 120)
    colour = jitter(rng, NEUTRALS[rng.integers(len(NEUTRALS))], 0.015)
    return [
        Part([outline], (colour * 0.8, colour), 0.12, "fade"),
        Part([outline * 0.9], (colour, colour * 0.94), 0.06, "mottled"),
    ]


def _pebble(rng: Rng) -> list[Part]:
    t = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    wave = sum(rng.uniform(-0.14, 0.14) * np.cos(k * t + rng.uniform(0, 6.3)) for k in (2, 3, 4))
    outline = _polar(1 + wave) * np.array((1, rng.uniform(0.45, 0.8)))
    grey = jitter(rng, np.array((0.55, 0.52, 0.5), np.float32), 0.12)
    return [Part([outline], (grey, grey * 0.7), 0.6, "mottled")]


def _block(rng: Rng) -> list[Part]:
    wide = rng.uniform(0.3, 1.0)
    outline = _rounded([(-1, -wide), (1, -wide), (1, wide), (-1, wide)], 0.12)
    return [Part([outline], _two_colours(rng), 0.25, _any_pattern(rng))]


def _rod(rng: Rng) -> list[Part]:
    bend, up = rng.uniform(-0.5, 0.5), np.array((0, rng.uniform(0.06, 0.14)))
    x = np.linspace(-1, 1, 24)
    spine = np.stack([x, bend * (1 - x * x)], 1)
    outline = np.concatenate([spine + up, spine[::-1] - up])
    brown = jitter(rng, np.array((0.5, 0.37, 0.27), np.float32), 0.1)
    colours = _two_colours(rng) if rng.random() < 0.5 else (brown, brown * 0.7)
    return [Part([outline], colours, 0.15, "fade")]


def _crescent(rng: Rng) -> list[Part]:
    t = np.linspace(0.35 * np.pi, 1.65 * np.pi, 60)
    outer = np.stack([np.cos(t), np.sin(t)], 1)
    inner = np.stack([np.cos(t) * 0.55 + 0.1, np.sin(t) * 0.86], 1)
    return [Part([np.concatenate([outer, inner[::-1]])], _two_colours(rng), 0.3, _any_pattern(rng))]


OUTLINES: dict[str, tuple[Callable[[Rng], list[Part]], float]] = {
    "star": (_star, 180),
    "heart": (_heart, 35),
    "ring": (_ring, 180),
    "flower": (_flower, 180),
    "mushroom": (_mushroom, 22),
    "fish": (_fish, 25),
    "orb": (_orb, 180),
    "sail": (_sail, 8),
    "plate": (_plate, 10),
    "pebble": (_pebble, 40),
    "block": (_block, 180),
    "rod": (_rod, 180),
    "crescent": (_crescent, 180),
}
"""Maker of the parts, and the largest tilt in degrees."""
CLUTTER = ("pebble", "pebble", "block", "rod", "rod", "crescent")
