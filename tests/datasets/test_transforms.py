from __future__ import annotations

import pickle

import numpy as np
import pytest

from resdet.datasets.transforms import AUGMENTATIONS, Augmentation, Flip, augmentation, moves_boxes
from resdet.errors import InputError

BOXES = np.array([[0, 0, 37, 20], [1, 2, 5, 9], [3.3, 4.7, 30.1, 18.25]], dtype=np.float32)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (20, 37, 3), dtype=np.uint8)


def test_flip_by_hand(image):
    flip, turned = augmentation(["flip"]), []
    for seed in range(20):
        out, boxes, kept = flip(image, BOXES, seed)
        turned.append(not np.array_equal(out, image))
        np.testing.assert_array_equal(kept, [0, 1, 2])
        if turned[-1]:
            np.testing.assert_array_equal(out, image[:, ::-1])
            # x -> 37 - x, with the corners changing places; whole numbers stay whole: [1, 5] becomes [32, 36]
            np.testing.assert_array_equal(boxes[:2], [[0, 0, 37, 20], [32, 2, 36, 9]])
            np.testing.assert_allclose(boxes[2], [37 - 30.1, 4.7, 37 - 3.3, 18.25], rtol=3e-7)
        else:
            np.testing.assert_array_equal(boxes, BOXES)  # to the last bit
    assert 3 <= sum(turned) <= 17


def test_vertical_flip(image):
    for seed in range(6):
        out, boxes, _ = augmentation(["vertical_flip"])(image, BOXES, seed)
        if not np.array_equal(out, image):
            np.testing.assert_array_equal(out, image[::-1])
            np.testing.assert_array_equal(boxes[1], [1, 11, 5, 18])  # 20 - 9, 20 - 2
            return
    pytest.fail("never flipped")


@pytest.mark.parametrize("names", [[name] for name in AUGMENTATIONS] + [list(AUGMENTATIONS)])
def test_a_pure_function_of_the_seed(image, names):
    """Not of the samples before, nor of the process."""
    first, second = augmentation(names), pickle.loads(pickle.dumps(augmentation(names)))
    expected = {seed: first(image, BOXES, seed) for seed in range(12)}
    for seed in (7, 0, 11, 7):
        for a, b in zip(expected[seed], second(image, BOXES, seed), strict=True):
            np.testing.assert_array_equal(a, b)
    assert len({out.tobytes() for out, _, _ in expected.values()}) > 1


def test_transforms_choose_independently(image):
    both = augmentation(["flip", "vertical_flip"])
    seen = {both(image, BOXES, seed)[0].tobytes() for seed in range(24)}
    assert len(seen) == 4  # one shared choice would give 2


def test_colour_leaves_boxes_alone(image):
    changed = 0
    for seed in range(8):
        out, boxes, kept = augmentation(["colour"])(image, BOXES, seed)
        np.testing.assert_array_equal(boxes, BOXES)
        assert out.dtype == np.uint8 and out.shape == image.shape and len(kept) == 3
        changed += not np.array_equal(out, image)
    assert 0 < changed < 8


def test_crop_moves_pixels_and_boxes_alike():
    # a white rectangle on black: its box must follow it
    image = np.zeros((40, 60, 3), dtype=np.uint8)
    image[12:28, 20:44] = 255
    boxes, shapes = np.array([[20, 12, 44, 28], [0, 0, 1, 1]], dtype=np.float32), set()
    for seed in range(16):
        out, moved, kept = augmentation(["crop"])(image, boxes, seed)
        ys, xs = np.nonzero(out[:, :, 0])
        np.testing.assert_allclose(moved[0], [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], atol=1e-4)
        assert out.shape[0] >= 20 and out.shape[1] >= 30  # at least half of each side
        if out.shape != image.shape:
            assert (moved >= 0).all() and (moved <= np.tile(out.shape[1::-1], 2)).all()
        assert kept[0] == 0
        shapes.add((out.shape, len(kept)))
    assert len(shapes) > 3 and {count for _, count in shapes} == {1, 2}  # the corner's box is lost at times


class Shift:
    """Stands for a crop: takes 10 pixels off the left."""

    def set_random_state(self, generator, chooser):
        pass

    def __call__(self, image, bboxes):
        width = image.shape[1]
        moved = bboxes.copy()
        moved[:, [0, 2]] = (bboxes[:, [0, 2]] * width - 10) / (width - 10)
        return {"image": image[:, 10:], "bboxes": moved}


def test_boxes_that_lose_nearly_all_are_dropped():
    # 100 wide, of which 10 go: a box of 20 keeps 15 (75%), one keeps 1 of 10.5 (9.5%), one keeps 2 of 12 (17%), one 0
    boxes = np.array([[5, 0, 25, 5], [0.5, 0, 11, 5], [0, 0, 12, 5], [0, 0, 10, 5]], dtype=np.float32)
    image, moved, kept = Augmentation([Shift()])(np.zeros((10, 100, 3), np.uint8), boxes, 0)
    np.testing.assert_array_equal(kept, [0, 2])
    np.testing.assert_allclose(moved, [[0, 0, 15, 5], [0, 0, 2, 5]], atol=1e-6)
    assert image.shape == (10, 90, 3)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_no_boxes(image, name):
    for seed in range(4):
        out, boxes, kept = augmentation([name])(image, np.zeros((0, 4), np.float32), seed)
        assert boxes.shape == (0, 4) and boxes.dtype == np.float32 and kept.shape == (0,) and out.ndim == 3


def test_names():
    assert augmentation([]) is None and len(augmentation().transforms) == 1
    with pytest.raises(InputError, match=r"augmentation\n.*'flipp'\n.*did you mean 'flip'"):
        augmentation(["flip", "flipp"])


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_our_flip_draws_and_gives_what_albumentations_does(image, p):
    import albumentations

    ours, theirs = Augmentation([Flip(p)]), Augmentation([albumentations.HorizontalFlip(p=p)])
    for seed in range(20):
        for a, b in zip(ours(image, BOXES, seed), theirs(image, BOXES, seed), strict=True):
            np.testing.assert_array_equal(a, b)


def test_transforms_of_albumentations_by_name(image):
    bright = augmentation([dict(type="RandomBrightnessContrast", p=1.0, brightness_limit=(0.2, 0.2), contrast_limit=0)])
    out, boxes, kept = bright(image, BOXES, 3)
    assert out.mean() > image.mean() + 20 and out.dtype == np.uint8
    np.testing.assert_allclose(boxes, BOXES, rtol=1e-6)  # colour moves no box
    turn = augmentation(["flip", dict(type="RandomRotate90", p=1.0)])
    shapes = set()
    for seed in range(12):
        turned, boxes, kept = turn(image, BOXES, seed)
        shapes.add(turned.shape[:2])
        assert len(kept) == 3 and boxes[0] == pytest.approx([0, 0, *turned.shape[1::-1]], abs=1e-4)  # all of the image
        again = pickle.loads(pickle.dumps(turn))(image, BOXES, seed)
        np.testing.assert_array_equal(again[0], turned)
    assert shapes == {(20, 37), (37, 20)}
    assert turn(image, np.zeros((0, 4), np.float32), 0)[1].shape == (0, 4)


def test_what_enlarges():
    assert moves_boxes(["flip", "crop"]) and moves_boxes([dict(type="Affine", scale=(0.5, 2.0))])
    assert not moves_boxes(["flip", "colour", dict(type="GaussNoise")])


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (dict(type="RandomBrightnesContrast"), "'RandomBrightnesContrast'(.|\n)*RandomBrightnessContrast"),
        (dict(type="GaussNoise", std_rang=(0, 1)), "argument 'std_rang'(.|\n)*std_range"),
        (dict(type="GaussNoise", std_range=5), "augmentation GaussNoise\n  found:  (.*)std_range"),
        (dict(type="Normalize"), "output of float32(.|\n)*uint8 RGB"),
        (dict(type="Mosaic"), "mosaic_metadata(.|\n)*images and boxes alone"),
        (dict(p=0.5), "type='<transform of albumentations>'"),
        (dict(type="Compose", transforms=[]), "type='Compose'"),
    ],
)
def test_wrong_transforms_are_told_before_training(step, words):
    with pytest.raises(InputError, match=words):
        augmentation([step])


def test_a_crop_larger_than_an_image_is_told_when_it_comes(image):
    crop = augmentation([dict(type="RandomCrop", height=64, width=64, p=1.0)])
    with pytest.raises(InputError, match=r"RandomCrop(.|\n)*of an image of 20x37(.|\n)*pad_if_needed"):
        crop(image, BOXES, 0)
