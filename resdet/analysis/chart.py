"""Panels of lines and bars, and sheets of images: the pictures of the analyses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from resdet.errors import InputError

GROUND = "#fafaf8"  # as in resdet.api.drawing


class Line(NamedTuple):
    """One curve, or points; values that are not finite leave a gap."""

    x: Sequence[float]
    y: Sequence[float]
    name: str = ""
    """In the legend; without one it is not there."""
    colour: int = 0
    """Of matplotlib's cycle."""
    style: Literal["bold", "dashed", "points"] = "bold"
    spread: Sequence[float] = ()
    """Half the height of a band around the curve."""


class Panel(NamedTuple):
    """A pair of axes with its curves."""

    title: str
    xlabel: str
    ylabel: str
    lines: Sequence[Line]
    log: bool = False
    """Logarithmic y, where the values span a decade."""
    top: float | None = None
    """Where y ends; None: with the highest value."""


class Bars(NamedTuple):
    """Horizontal bars, the first on top."""

    title: str
    xlabel: str
    names: Sequence[str]
    values: Sequence[float]


def draw(panels: Sequence[Panel | Bars], path: str | Path) -> Path:
    """Write panels side by side as PNG; the folder is made.

    Raises:
        InputError: there is no panel.
    """
    if not panels:
        raise InputError("a chart", found="no panel", needed="at least one")
    rows = max([len(panel.names) for panel in panels if isinstance(panel, Bars)], default=0)
    figure = Figure((6.5 * len(panels), max(4.5, 1 + 0.28 * rows)), dpi=120, layout="constrained", facecolor=GROUND)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        axes.set_facecolor(GROUND)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(panel.title, loc="left", fontweight="bold")
        axes.set_xlabel(panel.xlabel)
        (_draw_bars if isinstance(panel, Bars) else _draw_lines)(axes, panel)
    return _save(figure, path)


def draw_images(
    images: Sequence[Tensor], captions: Sequence[str], path: str | Path, *, title: str = "", columns: int = 8
) -> Path:
    """Write a sheet of (3, H, W) uint8 RGB images with a caption above each as PNG; the folder is made."""
    columns = max(1, min(columns, len(images)))
    rows = max(1, math.ceil(len(images) / columns))
    figure = Figure((1.9 * columns, 2.3 * rows), dpi=120, layout="constrained", facecolor=GROUND)
    figure.suptitle(title, fontsize=10, fontweight="bold")
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in places:
        axes.axis("off")
    for axes, image, caption in zip(places, images, captions, strict=False):
        axes.imshow(image.permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
        axes.set_title(caption, fontsize=9)
    return _save(figure, path)


def _draw_lines(axes: Axes, panel: Panel) -> None:
    for line in panel.lines:
        x, y, colour = np.asarray(line.x, float), np.asarray(line.y, float), f"C{line.colour % 10}"
        how = {
            "bold": {"linewidth": 2, "marker": "o" if 1 < len(x) < 25 else None, "markersize": 4},
            "dashed": {"linewidth": 1, "linestyle": "--"},
            "points": {"linewidth": 0, "marker": "o", "markersize": 5, "alpha": 0.6},
        }[line.style]
        axes.plot(x, y, color=colour, label=line.name or "_", **how)
        if len(line.spread):
            axes.fill_between(x, y - line.spread, y + line.spread, color=colour, alpha=0.18, linewidth=0)
    axes.set_ylabel(panel.ylabel)
    axes.grid(alpha=0.25)
    axes.margins(x=0.02)
    if all(float(value).is_integer() for line in panel.lines for value in line.x):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    values = np.concatenate([np.asarray(line.y, float) for line in panel.lines] or [np.ones(1)])
    values = values[np.isfinite(values)]
    if panel.log and len(values) and values.max() >= 10 * values.min() > 0:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0, top=panel.top)
    if any(line.name for line in panel.lines):
        axes.legend(frameon=False)


def _draw_bars(axes: Axes, bars: Bars) -> None:
    places = np.arange(len(bars.names))
    drawn = axes.barh(places, bars.values, color="C0")
    axes.bar_label(drawn, fmt="%.1f", padding=3, fontsize=9)
    axes.set_yticks(places, bars.names)
    axes.invert_yaxis()
    axes.margins(x=0.1)


def _save(figure: Figure, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return path
