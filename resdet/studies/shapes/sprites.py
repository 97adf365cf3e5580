"""The things of the shapes world, each drawn as a small inflated relief: outline, paint, light.

A sprite knows nothing of the scene it will stand in: ``sun`` and ``moon`` are both the sprite ``orb``, ``boat`` and
``tent`` both ``sail``, so their pixels cannot tell which of the two a scene makes of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from resdet.studies.shapes.outlines import OUTLINES, Part, Rng


class Sprite(NamedTuple):
    """A drawn thing, cut out along its edge."""

    rgb: np.ndarray
    """(3, h, w) float32 in [0, 1], multiplied by alpha."""
    alpha: np.ndarray
    """(h, w) float32 in [0, 1]."""


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
