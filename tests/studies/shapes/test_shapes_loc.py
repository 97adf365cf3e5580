from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from resdet.datasets.folder import read_folder
from resdet.datasets.imagenet_loc import read_imagenet_loc
from resdet.errors import InputError
from resdet.studies.shapes import localization as shapes_loc
from resdet.studies.shapes import sources
from resdet.studies.shapes.localization import CLASSES, SHAPES_HW, SIZES, LocScene, draw_loc_scene, write_shapes_loc


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes_loc(tmp_path_factory.mktemp("data") / "s", seed=3, train=45, val=15, processes=1)


def test_one_box_by_hand(tmp_path, monkeypatch):
    # columns 3..19 and rows 5..29 of the picture: ILSVRC counts from 0, last included
    scene = LocScene(np.zeros((48, 64, 3), np.uint8), np.array([[3, 5, 20, 30]]))
    monkeypatch.setattr(shapes_loc, "draw_loc_scene", lambda label, entropy: scene)
    root = write_shapes_loc(tmp_path / "s", train=15, val=15, processes=1)
    xml = (root / "Annotations/CLS-LOC/val/val_000004.xml").read_text()
    assert "<xmin>3</xmin><ymin>5</ymin><xmax>19</xmax><ymax>29</ymax>" in xml
    assert "<width>64</width><height>48</height>" in xml and f"<name>{CLASSES[4]}</name>" in xml
    found = read_imagenet_loc(root=root, split="val")
    np.testing.assert_array_equal(found.boxes, np.float32([[3, 5, 20, 30]] * 15))


def test_scene_is_a_function_of_its_seed():
    first, again, other = (draw_loc_scene(2, (7, 0, index)) for index in (1, 1, 2))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.boxes, again.boxes)
    assert first.image.shape != other.image.shape or (first.image != other.image).any()


def test_one_object_dominates():
    longer, aspects, fellows = [], [], 0
    for index in range(45):
        scene = draw_loc_scene(index % len(CLASSES), (0, 0, index))
        h, w = scene.image.shape[:2]
        assert (h, w) in SHAPES_HW and scene.image.dtype == np.uint8
        assert (scene.boxes >= 0).all() and (scene.boxes <= (w, h, w, h)).all()
        sides = scene.boxes[:, 2:] - scene.boxes[:, :2]
        assert (sides > 3).all()
        longer.append(sides[0].max() / min(h, w))
        aspects.append(sides[0, 0] / sides[0, 1])
        fellows += len(sides) - 1
        assert len(sides) == 1 or sides[1].prod() < sides[0].prod()
    assert max(longer) <= SIZES[1] + 0.03 and np.median(longer) > SIZES[0]
    assert min(aspects) < 0.7 and max(aspects) > 1.4 and 0 < fellows < 15


def test_reader_and_folders_agree(written, caplog):
    train, val = read_imagenet_loc(root=written), read_imagenet_loc(root=written, split="val")
    assert "3 of 45 images are left out: 3 without an annotation file" in caplog.text
    assert train.classes == val.classes == CLASSES and len(train) == 42 and len(val) == 15
    assert sorted(val.labels[val.first[:-1]].tolist()) == list(range(15))
    named = read_imagenet_loc(root=written, image_list="train_loc")
    assert sorted(named.files) == list(train.files)  # in the order of the list
    for split, images in (("train", 45), ("val", 15)):
        index = read_folder(written / "Data/CLS-LOC", split)
        assert index.classes == CLASSES and len(index) == images
        assert [os.path.dirname(file) for file in index.files] == [CLASSES[label] for label in index.labels]


def test_a_larger_set_begins_with_the_smaller(written, tmp_path):
    large, small = tree(write_shapes_loc(tmp_path / "b", seed=3, train=46, val=15, processes=1)), tree(written)
    shared = [name for name in small if name.endswith((".JPEG", ".xml"))]
    assert len(shared) == 45 + 15 + 42 + 15
    assert all(large[name] == small[name] for name in shared)


def test_second_call_does_nothing_and_foreign_folders_are_refused(written, monkeypatch):
    monkeypatch.setattr(shapes_loc, "draw_loc_scene", None)
    before = os.stat(written).st_mtime_ns
    assert write_shapes_loc(written, seed=3, train=45, val=15) == written
    assert os.stat(written).st_mtime_ns == before
    with pytest.raises(InputError, match="no shapes_loc data set"):
        write_shapes_loc(written / "Data")
    with pytest.raises(InputError, match=r"train=...\)\n.*14\n.*15 or more: one image of each class"):
        write_shapes_loc(written, train=14)


def test_sources(written, monkeypatch):
    monkeypatch.setattr(sources, "write_shapes_loc", Path)
    data = sources.shapes_loc(split="val", root=str(written), classes=CLASSES[::-1])
    assert data.classes == CLASSES[::-1] and len(data) == 15
    train, test = sources.training_shapes_loc(root=str(written)), sources.test_shapes_loc(root=str(written))
    assert len(train) == 45 and train[(0, 5)][0].shape == test[0][0].shape == (3, 112, 112)
    assert train.classes == test.classes == CLASSES
