from __future__ import annotations

import logging

import numpy as np
import pytest

from resdet.datasets.annotations import Annotations, check_boxes, find_images
from resdet.datasets.coco import to_coco
from resdet.datasets.file_names import FileNames
from resdet.errors import InputError
from resdet.labels import COCO_CATEGORY_IDS, COCO_CLASSES, VOC_CLASSES


def check(rows, hw=(10, 20), strict=False):
    boxes = np.array(rows, dtype=np.float64).reshape(-1, 4)
    sizes = np.tile(np.array(hw), (len(boxes), 1))
    return check_boxes(boxes, sizes, lambda row: f"image {row} {rows[row]}", source="x.json", strict=strict)


def test_boxes_by_hand(caplog):
    nan = float("nan")
    # the image is 20 wide and 10 high. In turn: fine; all of it; NaN; no width; negative height; from 2 left of it to
    # 2 below it, of which 2 x 10 remain; right of it
    rows = [[1, 2, 3, 4], [0, 0, 20, 10], [nan, 0, 1, 1], [5, 5, 5, 8], [5, 8, 9, 5], [-2, 0, 2, 12], [20.5, 0, 22, 5]]
    boxes, kept = check(rows)
    np.testing.assert_array_equal(kept, [True, True, False, False, False, True, False])
    np.testing.assert_array_equal(boxes, np.array([[1, 2, 3, 4], [0, 0, 20, 10], [0, 0, 2, 10]], dtype=np.float32))
    assert boxes.dtype == np.float32
    (record,) = caplog.records
    message = record.getMessage()
    assert record.levelno == logging.WARNING and message.startswith("x.json: 5 of 7 boxes at fault: 1 NaN")
    for part in ("2 without width or height", "1 partly outside", "1 wholly outside", "image 2 [nan", "image 4"):
        assert part in message
    assert "image 5" not in message  # the first three only


def test_good_boxes_say_nothing(caplog):
    rows = [[0, 0, 20, 10], [-0.05, 3, 20.09, 9]]  # two decimals overshoot: clipped without a word
    boxes, kept = check(rows, strict=True)
    np.testing.assert_array_equal(boxes, np.array([[0, 0, 20, 10], [0, 3, 20, 9]], dtype=np.float32))
    assert kept.all() and not caplog.records
    boxes, kept = check([])
    assert boxes.shape == (0, 4) and kept.shape == (0,)


def test_unknown_size_limits_only_left_and_top(caplog):
    boxes, _ = check([[-3, 1, 999, 5]], hw=(0, 0))
    np.testing.assert_array_equal(boxes, np.array([[0, 1, 999, 5]], dtype=np.float32))
    assert "1 partly outside" in caplog.text


@pytest.mark.parametrize("row", [[float("inf"), 0, 1, 1], [1, 1, 1, 5], [-1, 0, 5, 5], [0, 0, 20.2, 5], [30, 1, 35, 5]])
def test_strict_refuses(row):
    with pytest.raises(InputError, match=r"x\.json\n.*1 of 1 boxes at fault: .*image 0"):
        check([row], strict=True)


def test_missing_images(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a.jpg", "sub/b.jpg"):
        (tmp_path / name).touch()
    find_images(str(tmp_path), ["a.jpg", "sub/b.jpg"], source="x.json")
    with pytest.raises(InputError, match=r"3 of 4 images are missing; first: c.jpg, sub/a.jpg, no/d.jpg"):
        find_images(str(tmp_path), ["a.jpg", "c.jpg", "sub/a.jpg", "no/d.jpg"], source="x.json")
    with pytest.raises(InputError, match="no such folder"):
        find_images(str(tmp_path / "none"), [], source="x.json")


def test_to_coco_by_hand():
    annotations = Annotations(
        source="voc",
        image_root="",
        classes=("cat", "dog"),
        category_ids=np.array([1, 2]),
        image_ids=np.array([7, 9]),
        files=FileNames(["a.jpg", "b.jpg"]),
        hw=np.array([[10, 20], [30, 40]], dtype=np.int32),
        first=np.array([0, 0, 2]),
        boxes=np.array([[1, 2, 4, 8], [0, 0, 40, 30]], dtype=np.float32),
        labels=np.array([1, 0]),
        ignore=np.array([False, True]),
        areas=np.array([18, 1200], dtype=np.float32),
        box_ids=np.array([1, 2]),
    )
    assert annotations.rows(0) == slice(0, 0) and annotations.rows(1) == slice(0, 2)
    coco = to_coco(annotations)
    assert coco["images"] == [
        {"id": 7, "file_name": "a.jpg", "height": 10, "width": 20},
        {"id": 9, "file_name": "b.jpg", "height": 30, "width": 40},
    ]
    dog = {"id": 1, "image_id": 9, "category_id": 2, "bbox": [1.0, 2.0, 3.0, 6.0], "area": 18.0, "iscrowd": 0}
    cat = {"id": 2, "image_id": 9, "category_id": 1, "bbox": [0.0, 0.0, 40.0, 30.0], "area": 1200.0, "iscrowd": 1}
    assert coco["annotations"] == [dog, cat]
    assert coco["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


def test_labels():
    assert len(set(VOC_CLASSES)) == 20 and list(VOC_CLASSES) == sorted(VOC_CLASSES)
    assert len(set(COCO_CLASSES)) == len(COCO_CATEGORY_IDS) == 80
    ids = dict(zip(COCO_CLASSES, COCO_CATEGORY_IDS, strict=True))
    # read off the official file, one from before and after each run of holes
    assert ids["person"] == 1 and ids["fire hydrant"] == 11 and ids["stop sign"] == 13 and ids["backpack"] == 27
    assert ids["dining table"] == 67 and ids["toilet"] == 70 and ids["book"] == 84 and ids["toothbrush"] == 90


@pytest.fixture
def folder(tmp_path):
    """Photographs as a labelling tool's export meets them."""
    for name in ("im0.jpg", "sub/im1.JPG", "sub/im2.jpeg", "a/same.png", "b/same.png"):
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).touch()
    (tmp_path / "secret.png").touch()
    return tmp_path / "root"


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("im0.jpg", "im0.jpg"),
        ("sub/im1.JPG", "sub/im1.JPG"),
        ("sub\\im1.JPG", "sub/im1.JPG"),  # Windows
        ("C:\\photos\\im0.jpg", "im0.jpg"),
        ("/data/upload/4/im0.jpg", "im0.jpg"),  # of another machine
        ("images/im0.jpg", "im0.jpg"),  # under images/ already
        ("im0", "im0.jpg"),
        ("IM1.jpg", "sub/im1.JPG"),
        ("im2.jpg", "sub/im2.jpeg"),
        ("../../root/im0.jpg", "im0.jpg"),
        ("b/same.png", "b/same.png"),
    ],
)
def test_names_as_labelling_tools_write_them(folder, caplog, name, place):
    assert find_images(str(folder), [name], source="x.json") == [place]
    assert ("1 images were found by the last part" in caplog.text) == (name != place)


def test_a_last_part_of_several_files(folder):
    with pytest.raises(InputError, match=r"a/same\.png, b/same\.png"):
        find_images(str(folder), ["upload/same.png"], source="x.json")


def test_names_that_lead_out(folder):
    for name in ("../secret.png", str(folder.parent / "secret.png")):
        with pytest.raises(InputError, match=r"1 of 2 images are missing; first: .*secret\.png"):
            find_images(str(folder), ["im0.jpg", name], source="x.json")
        assert find_images(str(folder), [name], source="x.json", outside=True) == [name]


def test_exact_names(folder):
    with pytest.raises(InputError, match="missing"):
        find_images(str(folder), ["IM0.jpg"], source="x.json", exact=True)


def small_set() -> Annotations:
    """Three images: a box of a, then none, then boxes of b and a; ids 3 and 7."""
    boxes = np.array([[0, 0, 4, 4], [1, 1, 5, 6], [2, 2, 4, 8]], dtype=np.float32)
    return Annotations(
        source="made",
        image_root="/nowhere",
        classes=("a", "b"),
        category_ids=np.array([3, 7]),
        image_ids=np.array([10, 20, 30]),
        files=FileNames(["1.png", "2.png", "3.png"]),
        hw=np.array([[10, 10]] * 3, dtype=np.int32),
        first=np.array([0, 1, 1, 3]),
        boxes=boxes,
        labels=np.array([0, 1, 0]),
        ignore=np.array([False, False, True]),
        areas=np.array([16, 20, 12], dtype=np.float32),
        box_ids=np.array([1, 2, 3]),
    )


def test_other_classes_by_hand():
    data = small_set().with_classes(("c", "a"))
    assert data.classes == ("c", "a") and data.category_ids.tolist() == [8, 3]  # c gets the next free id
    assert data.labels.tolist() == [1, 1] and data.first.tolist() == [0, 1, 1, 2]
    assert data.box_ids.tolist() == [1, 3] and data.ignore.tolist() == [False, True]
    assert data.written.labels.tolist() == [1, 1] and data.written.images.tolist() == [0, 2]
    same = small_set().with_classes(("a", "b"))
    assert same.labels.tolist() == [0, 1, 0] and same.category_ids.tolist() == [3, 7]


def test_some_images_by_hand():
    data = small_set().select(np.array([2, 1]))
    assert data.image_ids.tolist() == [30, 20] and list(data.files) == ["3.png", "2.png"]
    assert data.first.tolist() == [0, 2, 2] and data.box_ids.tolist() == [2, 3] and data.labels.tolist() == [1, 0]
    assert data.written.images.tolist() == [0, 0] and data.written.boxes.tolist() == [[1, 1, 4, 5], [2, 2, 2, 6]]
    assert len(small_set().select(np.array([], dtype=int))) == 0
