from __future__ import annotations

import numpy as np
import pytest

from resdet.datasets.loc_view import LocalizationCrop, _scaled
from resdet.errors import InputError


def painted(hw: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    """A white box on black."""
    image = np.zeros((*hw, 3), np.uint8)
    image[box[1] : box[3], box[0] : box[2]] = 255
    return image


def test_by_hand():
    # 40 x 60 (h x w) at its own scale: the crop of 40 takes all rows and starts at a column from 0 to 20
    box = np.array([[30, 5, 50, 25]], np.float32)
    crop = LocalizationCrop(crop=40, shorter_side=(40, 40), flip=0, colour_std=0)
    image, boxes, kept = crop(painted((40, 60), (30, 5, 50, 25)), box, 3)
    left = 30 - boxes[0, 0]
    assert 0 <= left <= 20 and left == int(left) and kept.tolist() == [0]
    np.testing.assert_array_equal(boxes, [[30 - left, 5, min(50 - left, 40), 25]])
    assert image.shape == (40, 40, 3) and image[6, int(boxes[0, 0])].tolist() == [255] * 3
    # twice as large with mirror image: x goes to 80 - x
    both = LocalizationCrop(crop=80, shorter_side=(80, 80), flip=1, colour_std=0)
    plain = LocalizationCrop(crop=80, shorter_side=(80, 80), flip=0, colour_std=0)
    (image, flipped, _), (other, straight, _) = (
        view(painted((40, 40), (4, 8, 12, 20)), box * 0.4, 0) for view in (both, plain)
    )
    np.testing.assert_array_equal(straight, np.float32([[24, 4, 40, 20]]))
    np.testing.assert_array_equal(flipped, np.float32([[40, 4, 56, 20]]))
    np.testing.assert_array_equal(image, other[:, ::-1])


@pytest.mark.parametrize("hw", [(120, 160), (200, 90), (64, 64), (50, 400)])
def test_boxes_lie_on_their_object(hw):
    h, w = hw
    box = (w // 4, h // 3, w // 4 + max(w // 3, 12), h // 3 + h // 2)
    view = LocalizationCrop(crop=64, shorter_side=(70, 130), colour_std=0)
    for seed in range(40):
        image, boxes, kept = view(painted(hw, box), np.array([box], np.float32), seed)
        assert kept.tolist() == [0]
        white = image[..., 0] > 127
        rows, columns = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
        extent = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        assert np.abs(boxes[0] - extent).max() <= 1  # half grey at a pixel that the edge divides


def test_shares_by_hand():
    view = LocalizationCrop(crop=10, shorter_side=(20, 20))
    moved = np.array([[8, 8, 12, 12], [8, 8, 12, 12.1], [-40, -40, 60, 60], [5, 0, 105, 100], [8, 0, 108, 100]], float)
    # of 16 px 4 are inside, a quarter; of 16.4 also 4, which is less; a box larger than the crop fills it, or the half
    # (5 x 10 of 100), or a fifth (2 x 10)
    inside, kept = view._inside(moved, (0, 0))
    assert kept.tolist() == [True, False, True, True, False]
    np.testing.assert_array_equal(inside[[0, 2]], [[8, 8, 10, 10], [0, 0, 10, 10]])


@pytest.mark.parametrize("box", [(0, 0, 6, 5), (993, 290, 1000, 300), (0, 0, 1000, 300), (500, 0, 501, 300)])
def test_one_box_always_stays(box):
    view = LocalizationCrop(crop=32, shorter_side=(60, 120))
    image = np.zeros((300, 1000, 3), np.uint8)
    for seed in range(30):
        _, boxes, kept = view(image, np.array([box], np.float32), seed)
        assert kept.tolist() == [0] and (boxes >= 0).all() and (boxes <= 32).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_the_last_resort_holds_the_whole_box(monkeypatch):
    monkeypatch.setattr("resdet.datasets.loc_view.DRAWS", 0)
    view = LocalizationCrop(crop=32, shorter_side=(60, 120), flip=0)
    boxes = np.array([[40, 20, 60, 45], [0, 0, 60, 60]], np.float32)
    for seed in range(20):
        _, found, kept = view(np.zeros((60, 100, 3), np.uint8), boxes, seed)  # at its own scale
        if 0 in kept:
            sides = found[list(kept).index(0)]
            assert (sides[2:] - sides[:2]).tolist() == [20, 25] or kept.tolist() == [0, 1]
        else:
            assert found[0].tolist() == [0, 0, 32, 32]  # a crop within the larger box


def test_ratios_of_both_axes():
    # 10 x 25 to a shorter side of 13: 13 x 32.5, rounded down to 32
    moved = _scaled(np.array([[0, 0, 25, 10]], np.float32), np.zeros((10, 25, 3), np.uint8), (13, 32))
    np.testing.assert_allclose(moved, [[0, 0, 32, 13]])


def test_one_stays_even_where_rounding_cuts_it(monkeypatch):
    monkeypatch.setattr("resdet.datasets.loc_view.DRAWS", 0)
    view = LocalizationCrop(crop=32, shorter_side=(60, 60), flip=0, min_visible=1)
    boxes = np.array([[10.4, 10.4, 42.6, 42.6]], np.float32)  # 32.2 pixels: no whole step holds 32 of them
    _, found, kept = view(np.zeros((60, 60, 3), np.uint8), boxes, 0)
    assert kept.tolist() == [0] and (found[0, 2:] - found[0, :2] > 31).all()


def test_is_a_function_of_its_seed_and_keeps_rows():
    image = np.random.default_rng(0).integers(0, 256, (100, 150, 3), dtype=np.uint8)
    boxes = np.array([[0, 0, 5, 5], [20, 20, 130, 90], [145, 95, 150, 100]], np.float32)
    view = LocalizationCrop(crop=48, shorter_side=(50, 90))
    first, again, other = view(image, boxes, 1), view(image, boxes, 1), view(image, boxes, 2)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (first[0] != other[0]).any() and 1 in first[2] and len(first[1]) == len(first[2])
    assert first[1].dtype == np.float32 and first[2].dtype == np.int64


def test_no_boxes():
    image, boxes, kept = LocalizationCrop(crop=8, shorter_side=(8, 9))(
        np.zeros((9, 9, 3), np.uint8), np.empty((0, 4)), 0
    )
    assert image.shape == (8, 8, 3) and boxes.shape == (0, 4) and kept.shape == (0,)


def test_errors():
    with pytest.raises(InputError, match="1 <= crop <= shorter side"):
        LocalizationCrop(crop=224, shorter_side=(200, 256))
    with pytest.raises(InputError, match=r"LocalizationCrop\n.*min_visible = 2"):
        LocalizationCrop(min_visible=2)
