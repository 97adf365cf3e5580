from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from resdet.datasets.views import (
    EIGENVECTORS,
    CenterView,
    PaperView,
    TenCropView,
    WholeView,
    collate_views,
    crop_of_resized,
    scaled_hw,
    shift_colours,
    to_tensor,
)
from resdet.errors import InputError


def photograph(h: int, w: int, seed: int = 0) -> np.ndarray:
    """Smooth colours with noise on top, so that a shift of half a pixel shows."""
    noise = np.random.default_rng(seed).integers(0, 256, (h // 4 + 1, w // 4 + 1, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((w, h), Image.Resampling.BICUBIC))


def test_scaled_hw_by_hand():
    # 300 x 500 to a shorter side of 256: 256 * 500 / 300 = 426.67, rounded down
    assert scaled_hw((300, 500), 256) == (256, 426)
    assert scaled_hw((500, 300), 256) == (426, 256)
    assert scaled_hw((40, 40), 64) == (64, 64)


def test_center_view_of_an_unscaled_image_is_a_slice():
    image = photograph(8, 10)
    # rows (8 - 4) / 2 = 2, columns (10 - 4) / 2 = 3
    np.testing.assert_array_equal(CenterView(crop=4, shorter_side=8)(image), image[2:6, 3:7])


@pytest.mark.parametrize("hw", [(375, 500), (500, 333), (120, 90), (64, 64), (40, 900)])
def test_center_view_is_torchvisions(hw):
    image = photograph(*hw)
    reference = v2.Compose([v2.Resize(256), v2.CenterCrop(224)])(Image.fromarray(image))
    difference = np.abs(CenterView()(image).astype(int) - np.asarray(reference).astype(int))
    assert difference.max() <= 1  # one unit of the 8-bit rounding between the two passes of the filter


@pytest.mark.parametrize(("hw", "resized_hw"), [((90, 130), (61, 97)), ((31, 47), (70, 80)), ((200, 150), (47, 45))])
@pytest.mark.parametrize("corner", [0.0, 0.4, 1.0])
def test_crop_of_resized_equals_resize_then_crop(hw, resized_hw, corner):
    image = photograph(*hw)
    top, left = (int(corner * (n - 40)) for n in resized_hw)
    whole = Image.fromarray(image).resize(resized_hw[::-1], Image.Resampling.BILINEAR)
    expected = np.asarray(whole)[top : top + 40, left : left + 40].astype(int)
    view = np.asarray(crop_of_resized(image, resized_hw, top_left=(top, left), crop=40)).astype(int)
    assert np.abs(view - expected).max() <= 1


def test_large_reductions_stay_close_and_antialiased():
    image = photograph(1200, 1600)
    expected = np.asarray(Image.fromarray(image).resize((160, 120), Image.Resampling.BILINEAR))[10:90, 20:100]
    view = crop_of_resized(image, (120, 160), top_left=(10, 20), crop=80)
    assert np.abs(np.asarray(view).astype(int) - expected.astype(int)).mean() < 2


def test_colour_shift_by_hand():
    # alpha = (0.2, 0, 0): 0.2 x 0.2175 x 255 = 11.0925 along (-0.5675, -0.5808, -0.5836): (-6.295, -6.443, -6.474)
    image = Image.new("RGB", (2, 2), (100, 3, 250))
    np.testing.assert_array_equal(np.asarray(shift_colours(image, np.array([0.2, 0, 0])))[0, 0], [94, 0, 244])
    # alpha = (0, 10, 0): 10 x 0.0188 x 255 = 47.94 along (0.7192, -0.0045, -0.6948): (34.48, -0.22, -33.31)
    np.testing.assert_array_equal(np.asarray(shift_colours(image, np.array([0, 10.0, 0])))[1, 1], [134, 3, 217])


def test_principal_components_are_orthonormal():
    np.testing.assert_allclose(EIGENVECTORS.T @ EIGENVECTORS, np.eye(3), atol=2e-3)


def test_paper_view_is_a_function_of_the_generator():
    image, view = photograph(100, 140), PaperView(crop=56, shorter_side=(64, 120))
    first = view(image, np.random.default_rng(3))
    assert first.shape == (56, 56, 3) and first.dtype == np.uint8 and first.flags.writeable
    np.testing.assert_array_equal(first, view(image, np.random.default_rng(3)))
    assert (first != view(image, np.random.default_rng(4))).any()


def test_paper_view_shifts_all_pixels_by_one_colour():
    grey = np.full((8, 8, 3), 128, dtype=np.uint8)
    view, generator = PaperView(crop=8, shorter_side=(8, 8)), np.random.default_rng(0)
    shifts = np.stack([view(grey, generator)[0, 0].astype(float) - 128 for _ in range(400)])
    shifted = view(grey, generator)
    np.testing.assert_array_equal(shifted, np.broadcast_to(shifted[0, 0], shifted.shape))
    # Red: 255 x 0.1 x root((0.5675 x 0.2175)^2 + (0.7192 x 0.0188)^2 + (0.4009 x 0.0045)^2) = 3.17 grey levels
    assert abs(shifts[:, 0].std() - 3.17) < 0.45 and abs(shifts[:, 0].mean()) < 0.6


def test_paper_view_reaches_every_scale_place_and_side():
    # Red holds the column, green the row: their slopes tell the scale, their least values the place, the sign the flip.
    rows, columns = np.mgrid[0:40, 0:60].astype(np.uint8) * 4
    image = np.stack([columns, rows, np.zeros_like(rows)], axis=2)
    view = PaperView(crop=40, shorter_side=(40, 80), colour_std=0.0)
    generator, sides, flips, lefts = np.random.default_rng(0), [], 0, []
    for _ in range(400):
        seen = view(image, generator).astype(float)
        # per pixel of the view: 4 x 40 / side grey levels
        sides.append(160 / ((seen[30, 20, 1] - seen[10, 20, 1]) / 20))
        flips += seen[20, 30, 0] < seen[20, 10, 0]
        lefts.append(seen[:, :, 0].min())
    assert 39 < min(sides) < 43 and 77 < max(sides) < 83
    assert abs(np.mean(sides) - 60) < 2.5  # uniform on [40, 80]: mean 60, standard error 0.6
    assert 160 < flips < 240  # 400 throws of a coin: 200 +- 4 x 10
    assert min(lefts) == 0 and max(lefts) > 80


def test_wrong_sides_are_refused():
    with pytest.raises(InputError, match="crop = 224, shorter side = 64"):
        PaperView(shorter_side=(64, 100))
    with pytest.raises(InputError, match="the smaller one first"):
        PaperView(shorter_side=(300, 256))
    with pytest.raises(InputError, match="flip = 2"):
        PaperView(flip=2)
    with pytest.raises(InputError, match="CenterView"):
        CenterView(crop=257)


@pytest.mark.parametrize("hw", [(375, 500), (500, 333), (120, 90), (64, 64), (40, 300)])
@pytest.mark.parametrize(("crop", "shorter_side"), [(224, 256), (33, 64), (50, 50)])
def test_ten_crops_are_torchvisions(hw, crop, shorter_side):
    image = photograph(*hw)
    reference = v2.Compose([v2.Resize(shorter_side), v2.TenCrop(crop)])(Image.fromarray(image))
    view = TenCropView(crop=crop, shorter_side=shorter_side)(image)
    assert view.shape == (10, crop, crop, 3) and view.dtype == np.uint8
    if min(hw) < 6 * shorter_side:  # else the reduction is done in two steps, and may differ by a grey level
        np.testing.assert_array_equal(view, np.stack([np.asarray(one) for one in reference]))
    centre = CenterView(crop=crop, shorter_side=shorter_side)(image)
    assert np.abs(view[4].astype(int) - centre.astype(int)).max() <= 1


def test_ten_crops_by_hand():
    # A row of five pixels above another; crops of 2: the right ones start at column 3, the centre at round(1.5) = 2
    image = np.arange(30, dtype=np.uint8).reshape(2, 5, 3)
    view = TenCropView(crop=2, shorter_side=2)(image)
    # red, upper row: left, right, left, right, centre; the mirror image is 12 9 6 3 0
    expected = [[0, 3], [9, 12], [0, 3], [9, 12], [6, 9], [12, 9], [3, 0], [12, 9], [3, 0], [6, 3]]
    np.testing.assert_array_equal(view[:, 0, :, 0], expected)


def test_whole_views():
    image = photograph(90, 130)
    views = WholeView(sides=(40, 90, 100), crop=40)(image)
    # 90 x 130 at 40: 40 * 130 / 90 = 57.8; at 100: 144.4; rounded down
    assert [view.shape for view in views] == [(h, w, 3) for h, w in ((40, 57), (90, 130), (100, 144)) for _ in range(2)]
    np.testing.assert_array_equal(views[2], image)
    for view, mirrored in zip(views[::2], views[1::2], strict=True):
        np.testing.assert_array_equal(mirrored, view[:, ::-1])
        np.testing.assert_array_equal(view, np.asarray(v2.Resize(view.shape[0])(Image.fromarray(image))))
    one_each = WholeView(sides=(40, 90, 100), crop=40, flip=False)(image)
    for view, same in zip(views[::2], one_each, strict=True):
        np.testing.assert_array_equal(view, same)
    assert WholeView().sides == (224, 256, 384, 480, 640)  # the paper, section 3.4


def test_tensors_of_views():
    image = photograph(20, 30).copy()
    tensor = to_tensor(image)
    assert tensor.shape == (3, 20, 30) and tensor.is_contiguous() and tensor.dtype == torch.uint8
    assert tensor[1, 7, 9] == image[7, 9, 1]
    crops = to_tensor(TenCropView(crop=8, shorter_side=20)(image))
    assert crops.shape == (10, 3, 8, 8) and crops.is_contiguous() and crops[0, 2, 3, 5] == image[3, 5, 2]
    whole = to_tensor(WholeView(sides=(20, 40), crop=20)(image))
    assert [tuple(view.shape) for view in whole] == [(3, 20, 30)] * 2 + [(3, 40, 60)] * 2
    assert whole[1][0, 0, 29] == image[0, 0, 0]


def test_collate_views():
    crops = [(torch.full((10, 3, 4, 4), i), i) for i in range(3)]
    images, labels = collate_views(crops)
    assert images.shape == (3, 10, 3, 4, 4) and labels.tolist() == [0, 1, 2] and labels.dtype == torch.int64
    whole = [([torch.zeros(3, i, 5), torch.zeros(3, 6, i)], i) for i in (1, 2)]
    images, labels = collate_views(whole)
    assert [[tuple(view.shape) for view in views] for views in images] == [
        [(3, 1, 5), (3, 6, 1)],
        [(3, 2, 5), (3, 6, 2)],
    ]
    assert labels.tolist() == [1, 2] and labels.dtype == torch.int64


def test_wrong_sides_of_tests_are_refused():
    with pytest.raises(InputError, match=r"TenCropView\n.*crop = 257, shorter side = 256"):
        TenCropView(crop=257)
    with pytest.raises(InputError, match=r"WholeView\n.*crop = 224, shorter side = 200"):
        WholeView(sides=(200, 300))
    for sides in ((256, 224), (256, 256), ()):
        with pytest.raises(InputError, match="one or more sides, each once, rising"):
            WholeView(sides=sides)
