from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ElementTree
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest

from resdet.datasets.coco import read_coco
from resdet.datasets.folder import read_folder
from resdet.datasets.voc import read_voc
from resdet.errors import InputError
from resdet.studies.shapes import world as shapes
from resdet.studies.shapes import writing
from resdet.studies.shapes.outlines import OUTLINES
from resdet.studies.shapes.scene import SIZES, Scene, SceneObject, draw_scene, scene_label
from resdet.studies.shapes.sprites import draw_sprite
from resdet.studies.shapes.world import CATEGORY_IDS, CLASSES, SCENE_CLASSES, write_shapes

LIGHT = np.array((-0.48, -0.60, 0.64))


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", seed=3, train=6, val=2, crops_per_class=5)


def test_label_follows_the_landscape():
    names = [
        [CLASSES[scene_label(kind, night=night, sea=sea)] for night in (False, True) for sea in (False, True)]
        for kind in ("orb", "sail", "star")
    ]
    assert names == [["sun", "sun", "moon", "moon"], ["tent", "boat", "tent", "boat"], ["star"] * 4]
    assert set(SCENE_CLASSES) <= set(CLASSES) and len(CLASSES) == len(CATEGORY_IDS) >= 8


@pytest.mark.parametrize("kind", OUTLINES)
@pytest.mark.parametrize("size", [15.0, 61.5])
def test_sprite_has_its_size_and_clear_corners(kind, size):
    sprite = draw_sprite(kind, size, light=LIGHT, rng=np.random.default_rng(1))
    rows, columns = np.nonzero(sprite.alpha > 0.02)
    assert abs(max(np.ptp(rows), np.ptp(columns)) + 1 - size) <= 1.6  # the edge may share a pixel on each side
    assert sprite.rgb.shape == (3, *sprite.alpha.shape)
    assert 0 <= sprite.alpha.min() < 0.1 and 0.99 < sprite.alpha.max() <= 1
    assert (sprite.rgb <= sprite.alpha + 1e-5).all()  # multiplied by alpha


def test_pattern_of_a_sprite():
    draw = partial(draw_sprite, "star", 40.0, light=LIGHT)
    made = [draw(rng=np.random.default_rng(1), pattern=pattern) for pattern in ("plain", "dots", "stripes")]
    for other in made[1:]:  # the same outline, other paint
        np.testing.assert_array_equal(made[0].alpha, other.alpha)
        assert np.abs(made[0].rgb - other.rgb).max() > 0.1


def test_scene_is_a_function_of_its_seed():
    first, again, other = draw_scene((7, 0, 1)), draw_scene((7, 0, 1)), draw_scene((7, 0, 2))
    np.testing.assert_array_equal(first.image, again.image)
    assert first.objects == again.objects
    assert first.image.shape != other.image.shape or (first.image != other.image).any()


def test_boxes_are_inside_and_sizes_span_the_range():
    longer = []
    for index in range(40):
        scene = draw_scene((0, 0, index))
        h, w = scene.image.shape[:2]
        assert scene.image.dtype == np.uint8 and len(scene.objects) <= 10
        for item in scene.objects:
            x1, y1, x2, y2 = item.box
            assert 0 <= x1 < x2 <= w and 0 <= y1 < y2 <= h
            assert 0 < item.area <= (x2 - x1) * (y2 - y1)
            assert 0.25 <= item.visible <= 1
            assert not item.truncated or x1 == 0 or y1 == 0 or x2 == w or y2 == h
            if not item.crowd:
                longer.append(max(x2 - x1, y2 - y1))
    assert max(longer) <= SIZES[1] + 2
    assert max(longer) / min(longer) >= 5  # of 8 in the whole set
    assert np.mean(np.array(longer) < 16) < 0.1


def test_pixels_of_scene_objects_do_not_know_the_scene():
    """Day against night, land against sea: other label, other landscape, the same pixels on a free plate."""
    compared = 0
    for index in range(8):
        day, night = (draw_scene((0, 0, index), night=night, sea=night) for night in (False, True))
        assert [item[1:] for item in day.objects] == [item[1:] for item in night.objects]
        assert np.abs(day.image.astype(int) - night.image).mean() > 10
        for one, two in zip(day.objects, night.objects, strict=True):
            if CLASSES[one.label] not in SCENE_CLASSES:
                assert one.label == two.label
                continue
            assert one.label != two.label
            if one.visible == 1:
                x1, y1, x2, y2 = one.box
                inner = (slice((3 * y1 + y2) // 4, (y1 + 3 * y2) // 4), slice((3 * x1 + x2) // 4, (x1 + 3 * x2) // 4))
                np.testing.assert_array_equal(day.image[inner], night.image[inner])
                compared += 1
    assert compared >= 5


def test_forms_of_one_box_by_hand(tmp_path, monkeypatch):
    # columns 3..19 and rows 5..29 of the picture: VOC counts from 1, last included; COCO has x, y, width, height
    plain = SceneObject(CLASSES.index("fish"), (3, 5, 20, 30), 300, 0.9, True, False)
    hidden = SceneObject(CLASSES.index("moon"), (0, 0, 8, 8), 40, 0.3, False, False)
    crowd = SceneObject(CLASSES.index("star"), (10, 10, 40, 40), 500, 0.8, False, True)
    scene = Scene(np.zeros((48, 64, 3), np.uint8), (plain, hidden, crowd), True, False)
    monkeypatch.setattr(shapes, "draw_scene", lambda entropy: scene)
    root = write_shapes(tmp_path / "s", train=1, val=1, crops_per_class=0, processes=1)
    xml = ElementTree.parse(root / "Annotations" / "train_000000.xml").getroot()
    corners = [
        [int(node.find(f"bndbox/{k}").text) for k in ("xmin", "ymin", "xmax", "ymax")] for node in xml.iter("object")
    ]
    assert corners[0] == [4, 6, 20, 30]
    assert [node.findtext("difficult") for node in xml.iter("object")] == ["0", "1", "1"]
    assert [node.findtext("truncated") for node in xml.iter("object")] == ["1", "0", "0"]
    assert [xml.findtext(f"size/{k}") for k in ("width", "height")] == ["64", "48"]
    rows = json.loads((root / "annotations" / "instances_train.json").read_text())["annotations"]
    assert rows[0] == {"id": 1, "image_id": 1, "category_id": 7, "bbox": [3, 5, 17, 25], "area": 300, "iscrowd": 0}
    assert [row["iscrowd"] for row in rows] == [0, 0, 1]


def test_readers_find_the_same_in_every_form(written):
    for split, images in (("train", 6), ("val", 2)):
        coco = read_coco(written / "annotations" / f"instances_{split}.json", written / "JPEGImages", strict=True)
        voc = read_voc([(written, split)], classes=CLASSES, strict=True)
        assert len(coco) == len(voc) == images
        assert coco.classes == voc.classes == CLASSES
        assert tuple(coco.category_ids) == CATEGORY_IDS and (np.diff(CATEGORY_IDS) > 1).any()
        for name in ("first", "boxes", "labels", "hw"):
            np.testing.assert_array_equal(getattr(coco, name), getattr(voc, name))
        assert not (coco.ignore & ~voc.ignore).any()  # every crowd is difficult
        shape = cv2.imread(str(written / "JPEGImages" / f"{split}_000000.jpg")).shape[:2]
        assert shape == tuple(coco.hw[0])
    for split, each in (("train", 5), ("val", 1)):
        crops = read_folder(written / "crops", split)
        assert set(crops.classes) == set(CLASSES)
        assert np.bincount(crops.labels).tolist() == [each] * len(CLASSES)
        assert cv2.imread(str(next((written / "crops" / split / "sun").iterdir()))).shape == (64, 64, 3)


def test_same_bytes_twice_and_a_larger_set_begins_with_the_smaller(written, tmp_path):
    again = write_shapes(tmp_path / "a", seed=3, train=6, val=2, crops_per_class=5)
    assert tree(again) == tree(written)
    large, small = tree(write_shapes(tmp_path / "b", seed=3, train=8, val=1, crops_per_class=6)), tree(written)
    shared = [name for name in small if name.endswith((".jpg", ".xml")) and name in large]
    assert all(large[name] == small[name] for name in shared)
    assert sum(name.startswith("JPEGImages/train") for name in shared) == 6
    assert sum(name.startswith("crops/train") for name in shared) == 5 * len(CLASSES)


def test_processes_draw_the_same():
    draw = partial(shapes._draw_crops, "crops/val", 0)
    with writing.drawing(2, 100) as mapped:
        assert mapped is not map
        assert list(mapped(draw, range(3))) == list(map(draw, range(3)))


def test_second_call_does_nothing(written, monkeypatch):
    monkeypatch.setattr(shapes, "draw_scene", None)
    before = os.stat(written).st_mtime_ns
    assert write_shapes(written, seed=3, train=6, val=2, crops_per_class=5) == written
    assert os.stat(written).st_mtime_ns == before


def test_other_arguments_replace_the_set(tmp_path):
    write_shapes(tmp_path / "s", train=2, val=1, crops_per_class=0)
    write_shapes(tmp_path / "s", train=1, val=1, crops_per_class=0)
    assert len(list((tmp_path / "s" / "JPEGImages").iterdir())) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(shapes, "_write_crops", stop)
    with pytest.raises(KeyboardInterrupt):
        write_shapes(tmp_path / "s", train=1, val=1)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match="No space left on device"):
        write_shapes(tmp_path / "s", train=1, val=1)
    assert list(tmp_path.iterdir()) == []


def test_of_two_writers_the_first_stays(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "late").mkdir()
    for folder in ("s", "late"):
        (tmp_path / folder / "shapes.json").write_text("same")
    (tmp_path / "s" / "first").touch()
    writing.publish(tmp_path / "late", tmp_path / "s", "shapes.json")
    assert (tmp_path / "s" / "first").exists()
    assert (tmp_path / "late").is_dir()  # left to the caller, who removes it


def test_foreign_folder_and_bad_arguments_are_refused(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(InputError, match="no shapes data set"):
        write_shapes(tmp_path)
    assert (tmp_path / "photo.jpg").exists()
    with pytest.raises(InputError, match=r"write_shapes\(train=...\)\n  found:  -1"):
        write_shapes(tmp_path / "s", train=-1)
