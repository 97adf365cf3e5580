"""Pictures for people: boxes on an image, sheets that set detections beside the truth, and curves of a run."""

from __future__ import annotations

import colorsys
import math
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from resdet.errors import InputError

MIN_SIDE = 480
"""Images whose longer side is below this are enlarged before drawing, so that labels stay readable."""
_PAPER, _INK, _FAINT = (250, 250, 248), (35, 38, 45), (120, 124, 132)


@lru_cache(maxsize=16)
def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib: present on every machine, and not Latin only."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(os.path.join(matplotlib.get_data_path(), "fonts", "ttf", name), size)


def class_colour(label: int) -> tuple[int, int, int]:
    """RGB of a class: hues by the golden ratio, so that neighbouring labels differ and no number of classes repeats."""
    hue = (0.98 + 0.618034 * label) % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, (0.85, 0.6, 0.95)[label // 8 % 3], (1.0, 0.95, 0.8)[label // 4 % 3])
    return round(255 * red), round(255 * green), round(255 * blue)


def _text_colour(ground: tuple[int, int, int]) -> tuple[int, int, int]:
    luma = 0.299 * ground[0] + 0.587 * ground[1] + 0.114 * ground[2]
    return (0, 0, 0) if luma > 140 else (255, 255, 255)


def draw_detections(
    image: Tensor, boxes: Tensor, labels: Tensor, scores: Tensor | None = None, *, classes: Sequence[str]
) -> Image.Image:
    """Draw boxes with their class names, and their scores where given.

    Small images are enlarged by a whole factor to at least :data:`MIN_SIDE`; the boxes go with them.

    Args:
        image: (3, H, W) uint8 RGB.
        boxes: (D, 4) xyxy, frame: that of ``image``. D may be 0.
        labels: (D,) in [0, K).
        scores: (D,) in [0, 1].
        classes: K names.

    Raises:
        InputError: the image is not (3, H, W) uint8, the counts differ, or a label has no name.
    """
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise InputError("image", found=f"{image.dtype} {tuple(image.shape)}", needed="torch.uint8 (3, H, W)")
    counts = {"boxes": len(boxes), "labels": len(labels), **({} if scores is None else {"scores": len(scores)})}
    if len(set(counts.values())) > 1:
        raise InputError("detections", found=counts, needed="as many boxes as labels and scores")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
        found = f"labels from {int(labels.min())} to {int(labels.max())}"
        raise InputError("labels", found=found, needed=f"0 to {len(classes) - 1}, the classes given")
    picture = Image.fromarray(np.ascontiguousarray(image.detach().cpu().permute(1, 2, 0).numpy()))
    zoom = max(1, math.ceil(MIN_SIDE / max(picture.size)))
    if zoom > 1:
        picture = picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(picture)
    line = max(2, round(max(picture.size) / 400))
    font = _font(max(12, round(max(picture.size) / 42)), bold=True)
    given = [None] * len(boxes) if scores is None else scores.tolist()
    rows = list(zip((boxes.float() * zoom).tolist(), labels.tolist(), given, strict=True))
    rows.sort(key=lambda row: -(row[0][2] - row[0][0]) * (row[0][3] - row[0][1]))  # small boxes on top of large ones
    for box, label, _ in rows:
        _frame(pen, box, class_colour(label), line)
    for box, label, score in rows:
        text = classes[label] if score is None else f"{classes[label]} {score:.2f}"
        _tag(pen, box, text, class_colour(label), font, picture.size)
    return picture


def _frame(pen: ImageDraw.ImageDraw, box: list[float], colour: tuple[int, int, int], line: int) -> None:
    """A coloured frame with a thin dark edge, visible on any ground."""
    x1, y1, x2, y2 = (round(value) for value in box)
    x2, y2 = max(x2 - 1, x1), max(y2 - 1, y1)  # boxes are continuous; Pillow's last pixel is inclusive
    pen.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=(0, 0, 0), width=line + 2)
    pen.rectangle((x1, y1, x2, y2), outline=colour, width=line)


def _tag(pen: ImageDraw.ImageDraw, box: list[float], text: str, colour: tuple, font, size: tuple[int, int]) -> None:
    """The label on a patch of the class colour: above the box, or inside it at the upper border of the image."""
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    pad = max(2, font.size // 6)
    w, h = right - left + 2 * pad, bottom - top + 2 * pad
    x = min(max(0, round(box[0]) - 1), max(0, size[0] - w))
    y = round(box[1]) - h if box[1] >= h else min(max(0, round(box[1])), max(0, size[1] - h))
    pen.rectangle((x, y, x + w - 1, y + h - 1), fill=colour)
    pen.text((x + pad - left, y + pad - top), text, font=font, fill=_text_colour(colour))


def draw_comparison(
    rows: Sequence[tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]],
    path: str | Path,
    *,
    classes: Sequence[str],
    title: str = "",
    columns: int = 2,
    width: int = 420,
) -> Path:
    """Write a sheet of pairs as PNG: the truth on the left of each pair, the detections on the right, a legend below.

    Args:
        rows: of each image: (3, H, W) uint8; truth as (boxes, labels); detections as (boxes, labels, scores).
        path: file to write; its folder is made.
        classes: K names.
        title: headline.
        columns: pairs side by side.
        width: of one picture on the sheet, in pixels.

    Returns:
        ``path`` as a path.
    """
    if not rows:
        raise InputError("draw_comparison", found="no images", needed="at least one")
    pairs = [
        (draw_detections(image, *truth, classes=classes), draw_detections(image, *found, classes=classes))
        for image, truth, found in rows
    ]
    for picture in (picture for pair in pairs for picture in pair):
        picture.thumbnail((width, width), Image.Resampling.LANCZOS)
    gap, head = 14, 28
    columns = min(columns, len(pairs))
    lines = [range(start, min(start + columns, len(pairs))) for start in range(0, len(pairs), columns)]
    heights = [head + gap + max(pairs[number][0].height for number in line) for line in lines]
    total = columns * (2 * width + 3 * gap) + gap
    legend = _legend(classes, total - 4 * gap)
    y = 60 if title else gap
    sheet = Image.new("RGB", (total, y + sum(heights) + legend.height + gap), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((2 * gap, 18), title, font=_font(24, bold=True), fill=_INK)
    for line, height in zip(lines, heights, strict=True):
        for column, number in enumerate(line):
            _, truth, found = rows[number]
            for side, (name, count) in enumerate((("ground truth", len(truth[0])), ("detections", len(found[0])))):
                picture = pairs[number][side]
                x = gap + column * (2 * width + 3 * gap) + gap // 2 + side * (width + gap // 2)
                font, ink = _font(14, bold=bool(side)), _INK if side else _FAINT
                pen.text((x + (width - picture.width) // 2 + 1, y + 5), f"{name} ({count})", font=font, fill=ink)
                sheet.paste(picture, (x + (width - picture.width) // 2, y + head))
        y += height
    sheet.paste(legend, (2 * gap, sheet.height - legend.height - gap))
    return _save(sheet, Path(path))


def _legend(classes: Sequence[str], width: int) -> Image.Image:
    """Colour patches with class names, in as many lines as the width needs."""
    font, patch, line = _font(15), 15, 26
    places, x, y = [], 0, 0
    for name in classes:
        wide = patch + 7 + math.ceil(font.getlength(name)) + 22
        if x and x + wide > width:
            x, y = 0, y + line
        places.append((x, y))
        x += wide
    legend = Image.new("RGB", (max(1, width), y + line), _PAPER)
    pen = ImageDraw.Draw(legend)
    for label, (name, (x, y)) in enumerate(zip(classes, places, strict=True)):
        pen.rounded_rectangle((x, y + 4, x + patch, y + 4 + patch), 3, fill=class_colour(label))
        pen.text((x + patch + 7, y + 2), name, font=font, fill=_INK)
    return legend


def _save(picture: Image.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, format="PNG")
    return path


def plot_curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    path: str | Path,
    *,
    title: str = "",
    xlabel: str = "step",
    ylabel: str = "",
    smooth: int = 1,
) -> Path:
    """Write a line chart as PNG.

    Args:
        series: name -> (x values, y values); values that are not finite leave a gap.
        path: file to write; its folder is made.
        title: headline.
        xlabel: what x counts.
        ylabel: what y measures.
        smooth: length of a running mean; the raw values stay visible, faintly. 1 draws the values alone.

    Returns:
        ``path`` as a path.

    Raises:
        InputError: there is no series, or one has not as many x as y.
    """
    if not series:
        raise InputError("plot_curves", found="no series", needed="at least one")
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained", facecolor="#fafaf8")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_facecolor("#fafaf8")
    for label, (name, (x, y)) in enumerate(series.items()):
        x, y = np.asarray(x, float), np.asarray(y, float)
        if x.shape != y.shape or x.ndim != 1:
            raise InputError(f"series {name!r}", found=f"x {x.shape}, y {y.shape}", needed="two lists of one length")
        colour = f"C{label % 10}"
        if smooth > 1:
            axes.plot(x, y, color=colour, alpha=0.22, linewidth=1)
            y = _running_mean(y, smooth)
        axes.plot(x, y, color=colour, linewidth=2, label=name, marker="o" if len(x) < 25 else None, markersize=4)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.set_title(title, loc="left", fontweight="bold")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.02)
    axes.legend(frameon=False)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return path


def _running_mean(values: np.ndarray, length: int) -> np.ndarray:
    """Mean of the last ``length`` finite values up to each one."""
    finite = np.isfinite(values)
    total, many = np.cumsum(np.where(finite, values, 0)), np.cumsum(finite)
    earlier = np.maximum(np.arange(len(values)) - length, -1)
    sums = total - np.where(earlier >= 0, total[earlier], 0)
    counts = many - np.where(earlier >= 0, many[earlier], 0)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
