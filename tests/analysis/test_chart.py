from __future__ import annotations

import pytest
import torch
from PIL import Image

from resdet.analysis.chart import Bars, Line, Panel, draw, draw_images
from resdet.errors import InputError


def test_panels_side_by_side(tmp_path):
    line = Line((1, 2), (3.0, float("nan")), "a", spread=(0.5, 0.5))
    points = Line((0.5, 1), (1.0, 2.0), style="points")
    panels = [Panel("one", "x", "y", [line]), Panel("two", "x", "y", [points], log=True), Bars("b", "x", ["n"], [1.0])]
    with (
        Image.open(draw(panels[:1], tmp_path / "new" / "one.png")) as one,
        Image.open(draw(panels, tmp_path / "three.png")) as three,
    ):
        assert three.size == (3 * one.size[0], one.size[1])
        assert one.convert("RGB").getcolors(1 << 16) is not None


def test_sheet_of_images(tmp_path):
    images = [torch.full((3, 4, 4), 40 * i, dtype=torch.uint8) for i in range(5)]
    with Image.open(draw_images(images, [str(i) for i in range(5)], tmp_path / "sheet.png", columns=2)) as sheet:
        assert sheet.size[1] > sheet.size[0]  # three rows of two
    draw_images([], [], tmp_path / "empty.png")


def test_errors(tmp_path):
    with pytest.raises(InputError, match="no panel"):
        draw([], tmp_path / "x.png")
