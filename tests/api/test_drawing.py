from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from resdet.api.drawing import MIN_SIDE, _running_mean, class_colour, draw_comparison, draw_detections, plot_curves
from resdet.errors import InputError

NONE = (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))


def grey(h: int, w: int) -> torch.Tensor:
    return torch.full((3, h, w), 120, dtype=torch.uint8)


def test_frame_covers_the_edge_pixels_of_the_box():
    # continuous (10, 40, 90, 100) holds the columns 10..89 and the rows 40..99; the image is large enough to stay as is
    box, label = torch.tensor([[10.0, 40.0, 90.0, 100.0]]), torch.tensor([1])
    picture = draw_detections(grey(500, 600), box, label, classes=("cat", "dog"))
    assert picture.size == (600, 500)
    for at in ((10, 70), (89, 70), (50, 99)):
        assert picture.getpixel(at) == class_colour(1)
    assert picture.getpixel((90, 70)) == picture.getpixel((50, 100)) == (0, 0, 0)  # the dark edge begins outside
    for at in ((50, 70), (5, 70), (95, 70), (50, 105)):
        assert picture.getpixel(at) == (120, 120, 120)


def test_small_image_is_enlarged_with_its_boxes():
    # 480 / 100 = 4.8, so five times: the left edge goes from 20 to 100
    picture = draw_detections(
        grey(80, 100), torch.tensor([[20.0, 30.0, 60.0, 70.0]]), torch.tensor([0]), classes=("a",)
    )
    assert picture.size == (500, 400) and max(picture.size) >= MIN_SIDE
    assert picture.getpixel((100, 250)) == class_colour(0)
    assert picture.getpixel((90, 250)) == (120, 120, 120)


def test_no_boxes_leave_the_image_alone():
    image = torch.randint(0, 256, (3, 490, 500), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    picture = draw_detections(image, *NONE, torch.zeros(0), classes=())
    np.testing.assert_array_equal(np.asarray(picture), image.permute(1, 2, 0).numpy())


def test_label_stays_inside_at_every_corner():
    boxes = torch.tensor([[480.0, 0, 500, 20], [0, 480, 20, 500], [480, 480, 500, 500], [0, 0, 20, 20]])
    picture = np.asarray(
        draw_detections(grey(500, 500), boxes, torch.arange(4), torch.rand(4), classes=["long name"] * 4)
    )
    for label in range(4):
        assert (picture == class_colour(label)).all(-1).sum() > 300  # a patch of label ground, not cut away


def test_score_changes_the_label_only():
    box, label = torch.tensor([[100.0, 200.0, 300.0, 400.0]]), torch.tensor([0])
    with_score, without = (
        np.asarray(draw_detections(grey(500, 500), box, label, scores, classes=("a",))).astype(int)
        for scores in (torch.tensor([0.5]), None)
    )
    changed = np.nonzero((with_score != without).any(-1))
    assert changed[0].size and changed[0].max() < 200


def test_colours_of_80_classes_differ():
    colours = {class_colour(label) for label in range(80)}
    assert len(colours) == 80
    assert all(max(colour) > 150 for colour in colours)


@pytest.mark.parametrize(
    ("image", "labels", "words"),
    [
        (torch.zeros(3, 9, 9), torch.tensor([0]), "torch.float32"),
        (grey(9, 9), torch.tensor([0, 0]), "as many boxes as labels"),
        (grey(9, 9), torch.tensor([2]), "0 to 1, the classes given"),
    ],
)
def test_bad_detections_are_told(image, labels, words):
    with pytest.raises(InputError, match=words):
        draw_detections(image, torch.tensor([[1.0, 1, 5, 5]]), labels, classes=("a", "b"))


def test_comparison_sheet(tmp_path):
    truth = (torch.tensor([[5.0, 5, 50, 40]]), torch.tensor([0]))
    rows = [(grey(60, 100), truth, (*NONE, torch.zeros(0))), (grey(100, 60), NONE, (*truth, torch.tensor([0.9])))] * 2
    path = draw_comparison(rows, tmp_path / "new" / "sheet.png", classes=("a", "b"), title="four", width=200)
    with Image.open(path) as sheet:
        assert sheet.format == "PNG"
        assert sheet.width == 2 * (2 * 200 + 3 * 14) + 14
        colours = {colour for _, colour in sheet.convert("RGB").getcolors(1 << 24)}
        assert class_colour(0) in colours and class_colour(1) in colours  # the legend has also what is not on a picture
    with pytest.raises(InputError, match="at least one"):
        draw_comparison([], tmp_path / "none.png", classes=("a",))
    assert not (tmp_path / "none.png").exists()


def test_running_mean_by_hand():
    # pairs: 1 | (1+3)/2 | 3 alone beside the gap | 5 alone | (5+9)/2
    np.testing.assert_allclose(_running_mean(np.array([1, 3, np.nan, 5, 9.0]), 2), [1, 2, 3, 5, 7])
    np.testing.assert_array_equal(_running_mean(np.array([np.nan, 2.0]), 2), [np.nan, 2])
    assert _running_mean(np.zeros(0), 3).shape == (0,)


def test_curves(tmp_path):
    series = {"loss": (range(50), np.linspace(2, 1, 50)), "mAP": ([10, 20], [0.1, float("nan")])}
    path = plot_curves(series, tmp_path / "new" / "curves.png", title="run", ylabel="loss", smooth=5)
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.width > 600
    with pytest.raises(InputError, match="no series"):
        plot_curves({}, path)
    with pytest.raises(InputError, match=r"series 'loss'\n  found:  x \(2,\), y \(1,\)"):
        plot_curves({"loss": ([1, 2], [1])}, path)
