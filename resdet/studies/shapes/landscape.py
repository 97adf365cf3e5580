"""The landscapes of the shapes world: sky, hills, and ground or water."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from resdet.studies.shapes.outlines import Rng
from resdet.studies.shapes.sprites import noise

_DAY_SKIES = (
    ((0.22, 0.50, 0.86), (0.58, 0.80, 0.96), (0.92, 0.96, 0.97)),
    ((0.34, 0.58, 0.86), (0.80, 0.84, 0.90), (0.99, 0.86, 0.72)),
    ((0.30, 0.66, 0.84), (0.66, 0.88, 0.92), (0.96, 0.97, 0.88)),
    ((0.52, 0.60, 0.90), (0.84, 0.80, 0.95), (0.99, 0.90, 0.90)),
)
_NIGHT_SKIES = (
    ((0.02, 0.04, 0.14), (0.07, 0.11, 0.29), (0.20, 0.24, 0.44)),
    ((0.06, 0.03, 0.16), (0.17, 0.09, 0.32), (0.38, 0.22, 0.44)),
    ((0.01, 0.07, 0.13), (0.04, 0.17, 0.26), (0.12, 0.33, 0.40)),
)
_LANDS = (  # far, near
    ((0.66, 0.80, 0.48), (0.25, 0.50, 0.20)),
    ((0.86, 0.80, 0.48), (0.55, 0.50, 0.18)),
    ((0.92, 0.82, 0.62), (0.74, 0.55, 0.34)),
    ((0.84, 0.68, 0.46), (0.56, 0.34, 0.18)),
)
_SEAS = (
    ((0.55, 0.80, 0.90), (0.07, 0.32, 0.58)),
    ((0.60, 0.88, 0.86), (0.05, 0.46, 0.54)),
    ((0.60, 0.72, 0.86), (0.14, 0.26, 0.46)),
)
_NIGHT_LAND, _NIGHT_SEA = np.array((0.40, 0.46, 0.50), np.float32), np.array((0.28, 0.36, 0.62), np.float32)


def draw_landscape(hw: tuple[int, int], *, night: bool, sea: bool, rng: Rng) -> np.ndarray:
    """Sky, hills and ground or water.

    Returns:
        (3, H, W) float32 RGB about in [0, 1].
    """
    h, w = hw
    horizon = int(h * rng.uniform(0.30, 0.52))
    canvas = np.empty((3, h, w), np.float32)
    sky = np.asarray(_pick(_NIGHT_SKIES if night else _DAY_SKIES, rng), np.float32)
    canvas[:] = _gradient(sky, np.linspace(0, h / horizon, h))
    _fill_sky(canvas, horizon, night, rng)
    ground = np.asarray(_pick(_SEAS if sea else _LANDS, rng), np.float32)
    if night:
        ground = ground * (_NIGHT_SEA if sea else _NIGHT_LAND)
    _raise_hills(canvas, horizon, sky[2], ground[0] if not sea else sky[1] * 0.8, rng)
    fill = _fill_sea if sea else _fill_land
    canvas[:, horizon:] = fill((h - horizon, w), ground, sky[2], rng)
    return canvas


def _pick(palettes: Sequence, rng: Rng) -> Sequence:
    return palettes[rng.integers(len(palettes))]


def _gradient(stops: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Colours (3, n, 1) along evenly spaced stops, t in [0, 1]."""
    at = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(t, at, stops[:, channel]) for channel in range(3)])[..., None].astype(np.float32)


def _fill_sky(canvas: np.ndarray, horizon: int, night: bool, rng: Rng) -> None:
    """Clouds by day; stars and a faint milky band by night."""
    h, w = horizon, canvas.shape[2]
    clouds = np.clip((noise(rng, (h, w), 46, octaves=4, stretch=2.2) - rng.uniform(0.45, 0.62)) * 3.2, 0, 1)
    if not night:
        lit = 0.90 + 0.10 * noise(rng, (h, w), 20, octaves=3, stretch=2)
        canvas[:, :h] += (lit - canvas[:, :h]) * (0.85 * clouds)
        return
    canvas[:, :h] += np.multiply.outer(np.array((0.08, 0.09, 0.12), np.float32), clouds)
    stars = np.zeros((h, w), np.float32)
    many = int(h * w / 170)
    stars[rng.integers(0, h, many), rng.integers(0, w, many)] = rng.random(many) ** 3
    stars = stars + 2.2 * cv2.GaussianBlur(stars, (0, 0), 0.8)
    canvas[:, :h] += np.multiply.outer(np.array((0.95, 0.95, 0.85), np.float32), np.minimum(stars, 1))


def _raise_hills(canvas: np.ndarray, horizon: int, haze: np.ndarray, colour: np.ndarray, rng: Rng) -> None:
    """Up to three ridges behind the horizon, the farther the hazier."""
    w = canvas.shape[2]
    layers = int(rng.integers(0, 4))
    rows = np.arange(horizon, dtype=np.float32)[:, None]
    for layer in range(layers):
        tall = horizon * rng.uniform(0.16, 0.42) * (1 - 0.25 * layer)
        ridge = horizon - tall * noise(rng, (2, w), 2, octaves=1, stretch=float(rng.uniform(12, 34)))[0]
        ridge += 1.5 * noise(rng, (2, w), 2, octaves=2, stretch=3)[0]
        cover = np.clip(rows - ridge + 0.5, 0, 1)
        near = 0.35 + 0.5 * (layer + 1) / layers
        rock = 0.86 + 0.22 * noise(rng, (horizon, w), 9, octaves=3)
        paint = (haze * (1 - near) + colour * 0.72 * near)[:, None, None] * rock
        canvas[:, :horizon] += (paint - canvas[:, :horizon]) * cover


def _fill_land(hw: tuple[int, int], colours: np.ndarray, haze: np.ndarray, rng: Rng) -> np.ndarray:
    """Ground that nears the viewer: patches, blades that grow downwards, and a scatter of bright specks."""
    h, w = hw
    depth = np.linspace(0, 1, h, dtype=np.float32)
    paint = _gradient(colours, depth) * (0.80 + 0.40 * noise(rng, hw, 26, octaves=4, stretch=2.5))
    blades = np.full(hw, 128, np.uint8)
    many = h * w // 26
    y = h * rng.random(many) ** 0.7
    tall = 1 + 8 * (y / h) * rng.uniform(0.4, 1, many)
    x = rng.uniform(0, w, many)
    lines = np.stack([np.stack([x, y], 1), np.stack([x + rng.normal(0, 0.35, many) * tall, y - tall], 1)], 1)
    for chunk in np.array_split((lines * 16).astype(np.int32), 8):
        cv2.polylines(blades, list(chunk), False, int(rng.integers(60, 210)), 1, cv2.LINE_AA, 4)
    paint *= 1 + 0.55 * (blades.astype(np.float32) / 128 - 1) * (0.35 + 0.65 * depth[:, None])
    bloom = np.zeros(hw, np.float32)
    some = int(rng.integers(0, h * w // 260))
    bloom[rng.integers(0, h, some), rng.integers(0, w, some)] = 1
    bloom = np.minimum(cv2.GaussianBlur(bloom, (0, 0), 0.7) * 2.2, 1) * 0.8
    petals = rng.uniform(0.6, 1.0, 3).astype(np.float32) * (0.35 + 0.65 * colours.max())
    paint += (petals[:, None, None] - paint) * bloom
    return paint + (haze[:, None, None] - paint) * (0.45 * np.exp(-depth * 9))[:, None]


def _fill_sea(hw: tuple[int, int], colours: np.ndarray, haze: np.ndarray, rng: Rng) -> np.ndarray:
    """Water in perspective: waves that widen towards the viewer, with crests that catch the sky."""
    h, w = hw
    depth = np.linspace(0, 1, h, dtype=np.float32)
    swell = noise(rng, (256, 256), 22, octaves=3, stretch=3.2)
    x, y = np.meshgrid(np.arange(w, dtype=np.float32) - w / 2, depth)
    scale = 0.16 + 0.84 * y  # shrinks rows and columns towards the horizon
    across, along = x * 0.55 / scale + 700, 95 * np.log(scale) + 500
    waves = cv2.remap(swell, *(np.abs(at % 510 - 255) for at in (across, along)), cv2.INTER_LINEAR)  # tiled by mirrors
    slope = np.clip((waves - cv2.GaussianBlur(waves, (0, 0), 3)) * 4.5, -1, 1)
    paint = _gradient(colours, depth**0.7) * (1 + 0.30 * slope)
    crest = np.clip((slope - 0.35) * 2.0, 0, 1) * (0.35 + 0.4 * depth)[:, None]
    haze = haze[:, None, None]
    paint += (np.minimum(haze * 1.08, 1) - paint) * crest
    return paint + (haze - paint) * (0.55 * np.exp(-depth * 10))[:, None]
