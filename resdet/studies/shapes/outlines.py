"""What the things of the shapes world are made of: parts, each an outline with its colours."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

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


class Part(NamedTuple):
    """One inflated piece; later parts lie on earlier ones."""

    polygons: list[np.ndarray]
    """Outlines (m, 2), x right and y down; areas covered twice are holes."""
    colours: tuple[Colour, Colour]
    bevel: float
    """Width of the rounded rim, as a share of half the sprite's size."""
    pattern: str = "plain"


def jitter(rng: Rng, colour: Colour, amount: float = 0.05) -> Colour:
    """The colour, a little off."""
    return np.clip(colour + rng.uniform(-amount, amount, 3), 0, 1).astype(np.float32)


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
