from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from resdet import boxes as box_ops
from resdet.detection.preprocess import Preprocess, resized
from resdet.errors import InputError
from resdet.structures import Target


def grey(value: int, hw: tuple[int, int]) -> torch.Tensor:
    return torch.full((3, *hw), value, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("hw", "expected"),
    [
        ((480, 640), (600, 800)),  # shorter side 600, the other by the same factor
        ((640, 480), (800, 600)),
        ((440, 500), (600, 681)),  # 681.8: cut, as torchvision, and not rounded
        ((300, 900), (333, 1000)),  # 1800 would be too long: 1000 wins, and 333.3 is cut
        ((1200, 1200), (600, 600)),
        ((1, 2000), (1, 1000)),  # never without a row
    ],
)
def test_size(hw, expected):
    assert Preprocess(600, 1000).size(hw, 600) == expected


@pytest.mark.parametrize(
    ("hw", "torchvision", "mmdetection", "detectron2"),
    [
        ((480, 640), (800, 1066), (800, 1067), (800, 1067)),  # 1066.67
        ((427, 640), (800, 1199), (800, 1199), (800, 1199)),  # 1199.06
        ((640, 361), (1333, 751), (1333, 752), (1333, 752)),  # bound by the longer side: 751.90
        # Exactly 60 * 1333 / 248 = 322.5. In two steps, 60 -> 800 and 248 -> 3306.67, a little less is left.
        ((60, 248), (322, 1333), (323, 1333), (322, 1333)),
    ],
)
def test_whose_rounding(hw, torchvision, mmdetection, detectron2):
    for rounding, expected in (("torchvision", torchvision), ("mmdetection", mmdetection), ("detectron2", detectron2)):
        assert Preprocess(800, 1333, rounding=rounding).size(hw, 800) == expected, rounding
        assert Preprocess(800, 1333, rounding=rounding).size(hw[::-1], 800) == expected[::-1], rounding


def mmdetections(h: int, w: int, short: int, long: int) -> tuple[int, int]:
    """As mmcv rescales an image to fit a (long, short) scale."""
    factor = min(long / max(h, w), short / min(h, w))
    return int(h * factor + 0.5), int(w * factor + 0.5)


def detectron2s(h: int, w: int, short: int, long: int) -> tuple[int, int]:
    """As detectron2 finds the shape for a shortest edge: to it first, and then down to the bound."""
    ratio = short / min(h, w)
    new_h, new_w = (short, ratio * w) if h < w else (ratio * h, short)
    if max(new_h, new_w) > long:
        ratio = long / max(new_h, new_w)
        new_h, new_w = new_h * ratio, new_w * ratio
    return int(new_h + 0.5), int(new_w + 0.5)


@pytest.mark.parametrize(("short", "long"), [(800, 1333), (600, 1000), (640, 1333), (480, 800)])
def test_each_rounding_is_its_authors(short, long):
    sizes = [(h, w) for h in range(32, 1300, 31) for w in range(32, 1300, 4)]
    for hw in sizes:
        assert resized(hw, short, long, "mmdetection") == mmdetections(*hw, short, long), hw
        assert resized(hw, short, long, "detectron2") == detectron2s(*hw, short, long), hw


def test_an_unknown_rounding():
    with pytest.raises(InputError, match=r"rounding\n  found:  'up'\n  needed: one of: detectron2"):
        Preprocess(800, 1333, rounding="up")


def test_normalised_and_padded_by_hand():
    preprocess = Preprocess(4, 8, mean=(100.0, 50.0, 0.0), std=(50.0, 25.0, 10.0), multiple=4)
    batch = preprocess([grey(150, (4, 6)), grey(50, (8, 8))])
    # 4x6 stays, 8x8 becomes 4x4; together 4x6, padded to 4x8
    assert batch.input_hw == [(4, 6), (4, 4)] and batch.sample_hw == [(4, 6), (8, 8)]
    assert batch.pixels.shape == (2, 3, 4, 8) and batch.pixels.dtype == torch.float32
    # (150 - 100) / 50, (150 - 50) / 25, 150 / 10; and of 50: -1, 0, 5
    assert_close(batch.pixels[0, :, :, :6], torch.tensor([1.0, 4, 15]).view(3, 1, 1).expand(3, 4, 6))
    assert_close(batch.pixels[1, :, :, :4], torch.tensor([-1.0, 0, 5]).view(3, 1, 1).expand(3, 4, 4))
    assert (batch.pixels[0, :, :, 6:] == 0).all() and (batch.pixels[1, :, :, 4:] == 0).all()
    assert_close(batch.limits(), torch.tensor([[6.0, 4, 6, 4], [4, 4, 4, 4]]))
    assert batch.pixels.is_contiguous(memory_format=torch.channels_last)


def test_one_of_several_sides():
    preprocess = Preprocess((32, 64, 96), 500)
    torch.manual_seed(0)
    pair = [grey(0, (50, 50))] * 2
    drawn = [preprocess(pair).input_hw for _ in range(30)]
    assert all(a == b for a, b in drawn)  # one for the batch
    assert {a for a, _ in drawn} == {(32, 32), (64, 64), (96, 96)}
    assert {preprocess.eval()(pair).input_hw[0] for _ in range(10)} == {(96, 96)}


@pytest.mark.parametrize(
    ("shorter_side", "expected"),
    [
        (300, [(300, 400), (400, 300), (500, 125)]),  # the bound goes down to 500: 300 would be 1200 long
        (600, [(600, 800), (800, 600), (1000, 250)]),  # the net's own
        (900, [(900, 1200), (1200, 900), (1500, 375)]),  # and up to 1500
        (40, [(40, 53), (53, 40), (66, 16)]),  # 53.3; the bound of 66.67 by the factor 66.67 / 1200: 66.67, 16.67
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_another_side_takes_the_bound_with_it(shorter_side, expected, training):
    preprocess = Preprocess((500, 600), 1000, multiple=1).train(training)  # several: the bound is that of the last
    images = [grey(0, hw) for hw in ((480, 640), (640, 480), (1200, 300))]
    batch = preprocess(images, shorter_side)
    assert batch.input_hw == expected
    assert batch.pixels.shape[2:] == tuple(max(hw[axis] for hw in expected) for axis in (0, 1))
    assert preprocess.test_side == 600
    if not training:
        assert preprocess(images).input_hw == [(600, 800), (800, 600), (1000, 250)]


def test_antialias_by_hand():
    # Columns 0, 0, 0, 255 at half the width. Between the middle two of each pair: 0, 127.5. With the blur each pixel is
    # a triangle of 4 columns, weights 1 3 3 1, cut at the border: (3 3 1) / 7 of 0, 0, 0; (1 3 3) / 7 of 0, 0, 255.
    image = torch.tensor([0, 0, 0, 255], dtype=torch.uint8).expand(3, 4, 4)
    for antialias, expected in ((False, [0.0, 127.5]), (True, [0.0, 255 * 3 / 7])):
        preprocess = Preprocess(2, 100, antialias=antialias, mean=(0, 0, 0), std=(1, 1, 1), multiple=1)
        batch = preprocess([image])
        assert_close(batch.pixels, torch.tensor(expected).expand(1, 3, 2, 2))
        # Growing needs no blur: 0, 0, 0, 0, 0, 63.75, 191.25, 255.
        grown = preprocess([image], 8).pixels[0, 0, 0]
        assert_close(grown, torch.tensor([0, 0, 0, 0, 0, 63.75, 191.25, 255]))


def test_boxes_go_there_and_back_exactly_per_axis():
    # 70 x 95 at shorter side 50: the width of 67.86 is cut to 67, so the axes have ratios of their own.
    preprocess = Preprocess(50, 1000)
    batch = preprocess([grey(0, (70, 95))])
    assert batch.input_hw == [(50, 67)]
    boxes = torch.tensor([[0.0, 0, 95, 70], [19, 14, 38, 28]])
    target = Target(boxes, torch.tensor([1, 2]), torch.tensor([False, True]), 7, (70, 95))
    (moved,) = preprocess.move_targets([target], batch)
    assert_close(moved.boxes, torch.tensor([[0.0, 0, 67, 50], [13.4, 10, 26.8, 20]]))  # x by 67/95, y by 50/70
    assert moved._replace(boxes=boxes) == target
    assert_close(box_ops.scale(moved.boxes, batch.input_hw[0], batch.sample_hw[0]), boxes)


def test_targets_without_objects():
    preprocess = Preprocess(32, 64)
    empty = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.bool), 0, (9, 9))
    (moved,) = preprocess.move_targets([empty], preprocess([grey(0, (9, 9))]))
    assert moved.boxes.shape == (0, 4)


def test_nothing_to_save():
    assert not Preprocess(32, 64).state_dict()  # the mean is a setting, not a weight


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (torch.zeros(3, 4, 5), "torch.float32 of shape (3, 4, 5)"),
        (torch.zeros(4, 5, 3, dtype=torch.uint8), "torch.uint8 of shape (4, 5, 3)"),
        (torch.zeros(1, 4, 5, dtype=torch.uint8), "torch.uint8 of shape (1, 4, 5)"),
        (torch.zeros(1, 3, 4, 5, dtype=torch.uint8), "torch.uint8 of shape (1, 3, 4, 5)"),
        (torch.zeros(3, 0, 5, dtype=torch.uint8), "torch.uint8 of shape (3, 0, 5)"),
    ],
)
def test_what_is_no_image(image, found):
    with pytest.raises(InputError) as caught:
        Preprocess(32, 64)([grey(0, (4, 5)), image])
    assert str(caught.value) == f"image\n  found:  {found}\n  needed: uint8 RGB (3, H, W), 0-255"


def test_a_size_without_pixels_is_refused():
    for sizes in ((0, 100), ((), 100), (100, 0)):
        with pytest.raises(InputError, match="pixels, 1 or more"):
            Preprocess(*sizes)
