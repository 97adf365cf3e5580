"""Contact sheets of a data set as the net sees it: augmented, resized, with its boxes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from resdet.api.drawing import draw_detections
from resdet.datasets.detection import DetectionDataset
from resdet.detection.preprocess import Preprocess
from resdet.engine.config import ExperimentConfig
from resdet.errors import InputError, nearest
from resdet.structures import Target

KINDS = {"small": (0.0, 32.0), "medium": (32.0, 96.0), "large": (96.0, np.inf)}
"""Sides in pixels of the square of a box's area, as COCO divides."""
COLUMNS, CELL = 4, 480


def chosen_rows(
    data: DetectionDataset, *, count: int, seed: int = 0, classes: Sequence[str] = (), size: str | None = None
) -> list[int]:
    """Images for a sheet, drawn at random.

    Args:
        data: the set.
        count: how many, at most.
        seed: of the draw.
        classes: with an object of one of these; none: any.
        size: with an object that is ``"small"``, ``"medium"`` or ``"large"``.

    Raises:
        InputError: no such class or size, or no such image.
    """
    known = data.annotations
    for name in classes:
        if name not in known.classes:
            raise InputError("--classes", found=repr(name), needed=nearest(name, known.classes))
    fits = np.ones(len(known.boxes), dtype=bool)
    if classes:
        fits &= np.isin(known.labels, [known.classes.index(name) for name in classes])
    if size is not None:
        low, high = KINDS[size]
        sides = np.sqrt((known.boxes[:, 2:] - known.boxes[:, :2]).prod(1))
        fits &= (sides >= low) & (sides < high)
    images = np.repeat(np.arange(len(known)), np.diff(known.first))
    rows = np.unique(images[fits]) if classes or size else np.arange(len(known))
    if not len(rows):
        raise InputError(known.source, found="no image with such objects", needed="other --classes or --size")
    return np.random.default_rng(seed).permutation(rows)[:count].tolist()


def contact_sheet(
    data: DetectionDataset, rows: Sequence[int], preprocess: Preprocess | None, *, seed: int = 0
) -> Image.Image:
    """A sheet of samples, four in a row.

    Args:
        data: with its augmentation.
        rows: of the images.
        preprocess: resizes as the net's; None leaves the sizes.
        seed: of the augmentation.
    """
    cells = [_cell(*data[row, seed + number], data.classes, preprocess) for number, row in enumerate(rows)]
    lines = -(-len(cells) // COLUMNS)
    sheet = Image.new("RGB", (min(len(cells), COLUMNS) * CELL, lines * CELL), (250, 250, 248))
    for place, cell in enumerate(cells):
        sheet.paste(cell, (place % COLUMNS * CELL, place // COLUMNS * CELL))
    return sheet


def _cell(image: object, target: Target, classes: Sequence[str], preprocess: Preprocess | None) -> Image.Image:
    boxes = target.boxes
    if preprocess is not None:
        batch = preprocess([image])
        (height, width), (was_high, was_wide) = batch.input_hw[0], batch.sample_hw[0]
        pixels = batch.pixels[0, :, :height, :width]
        image = (pixels * preprocess.std + preprocess.mean).clamp(0, 255).round().byte()
        boxes = boxes * boxes.new_tensor([width / was_wide, height / was_high] * 2)
    picture = draw_detections(image, boxes, target.labels, classes=classes)
    picture.thumbnail((CELL - 8, CELL - 8))
    return picture


def write_sheets(
    config: ExperimentConfig,
    *,
    split: str,
    out: Path,
    count: int = 16,
    seed: int = 0,
    classes: Sequence[str] = (),
    size: str | None = None,
) -> Path:
    """A PNG of samples of one split.

    Args:
        config: of detection.
        split: ``"train"``, augmented, or ``"val"``.
        out: the file.
        count: samples.
        seed: of the draw and the augmentation.
        classes: see :func:`chosen_rows`.
        size: likewise.

    Raises:
        InputError: as :func:`chosen_rows`; an image that does not decode.
    """
    data = config.task.training_data(config) if split == "train" else config.task.test_data(config)
    model = config.model.settings
    side = getattr(model, "shorter_side", None)
    preprocess = None if side is None else Preprocess(side, model.longer_side, multiple=model.multiple).eval()
    rows = chosen_rows(data, count=count, seed=seed, classes=classes, size=size)
    out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(data, rows, preprocess, seed=seed).save(out, format="PNG")
    return out
