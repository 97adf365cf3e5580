from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from resdet.datasets import ilsvrc, imagenet_det
from resdet.datasets.detection import DetectionDataset
from resdet.datasets.imagenet_det import read_imagenet_det
from resdet.errors import InputError


def add(root, name, *objects, xml=True):
    """A 20 x 10 image (width x height) and its annotation file."""
    picture, note = (root / part / "DET" / name for part in ("Data", "Annotations"))
    for path in (picture, note):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 10)).save(f"{picture}.JPEG")
    things = "".join(
        f"<object><name>{label}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
        "</bndbox></object>"
        for label, x1, y1, x2, y2 in objects
    )
    if xml:
        size = "<size><width>20</width><height>10</height></size>"
        note.with_suffix(".xml").write_text(f"<annotation>{size}{things}</annotation>")


def write_list(root, name, *lines):
    path = root / "ImageSets/DET" / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(imagenet_det, "NUM_CLASSES", 2)
    root = tmp_path / "ILSVRC"
    add(root, "train/ILSVRC2013_train/n02/n02_1", ("n02", 0, 0, 19, 9), ("n01", 2, 3, 5, 7))
    add(root, "train/ILSVRC2014_train_0000/ILSVRC2014_train_00000001", ("n01", 1, 1, 2, 2))
    add(root, "train/ILSVRC2013_train_extra0/ILSVRC2013_train_00000001", xml=False)
    add(root, "val/ILSVRC2013_val_00000001", ("n02", 3, 4, 20, 6))
    add(root, "val/ILSVRC2013_val_00000002")
    add(root, "val/ILSVRC2013_val_00000003", ("n01", 1, 1, 4, 4), ("n02", 1, 1, 5, 5))
    train = ["ILSVRC2013_train/n02/n02_1", "ILSVRC2013_train_extra0/ILSVRC2013_train_00000001"]
    train.append("ILSVRC2014_train_0000/ILSVRC2014_train_00000001")
    write_list(root, "train", *(f"{name} {number}" for number, name in enumerate(train, 1)))
    write_list(root, "val1", "ILSVRC2013_val_00000002", "ILSVRC2013_val_00000001")
    write_list(root, "val2", "ILSVRC2013_val_00000003 1")
    return root


def test_by_hand(root, caplog):
    a = read_imagenet_det(root=root)
    assert list(a.files) == [
        "train/ILSVRC2013_train/n02/n02_1.JPEG",
        "train/ILSVRC2014_train_0000/ILSVRC2014_train_00000001.JPEG",
        "val/ILSVRC2013_val_00000002.JPEG",
        "val/ILSVRC2013_val_00000001.JPEG",
    ]
    # pixels from 0, the last included; 20 of 20 columns is the end already. The third image has no objects.
    expected = np.float32([[0, 0, 20, 10], [2, 3, 6, 8], [1, 1, 3, 3], [3, 4, 20, 7]])
    np.testing.assert_array_equal(a.boxes, expected)
    np.testing.assert_array_equal(a.labels, [1, 0, 0, 1])
    np.testing.assert_array_equal(a.first, [0, 2, 3, 3, 4])
    np.testing.assert_array_equal(a.hw, [[10, 20]] * 4)
    assert a.classes == ("n01", "n02") and not a.ignore.any()
    (record,) = caplog.records
    assert "1 of 5 images have no annotation file and are left out; first: train/ILSVRC2013_train_e" in caplog.text
    assert record.name == "resdet.datasets.imagenet_det"
    test = read_imagenet_det(root=root.parent, splits=("val2",))
    assert test.classes == a.classes and test.labels.tolist() == [0, 1]
    assert len(DetectionDataset(a)[0][1].boxes) == 2


def test_negatives(root):
    a = read_imagenet_det(root=root, splits=("train",), negatives=True)
    assert len(a) == 3 and a.first.tolist() == [0, 2, 2, 3] and a.boxes[2].tolist() == [1, 1, 3, 3]
    assert DetectionDataset(a).hw.tolist() == [[10, 20]] * 3


def test_marks(root):
    one, other = "ILSVRC2013_train/n02/n02_1", "ILSVRC2014_train_0000/ILSVRC2014_train_00000001"
    extra = "ILSVRC2013_train_extra0/ILSVRC2013_train_00000001"
    write_list(root, "train_1", f"{one} 1", f"{other} 0", f"{extra} -1")
    write_list(root, "train_2", f"{other} 1", f"{one} 1")
    assert list(read_imagenet_det(root=root, splits=("train_1",)).files) == [f"train/{one}.JPEG"]
    assert len(read_imagenet_det(root=root, splits=("train_1",), negatives=True)) == 2
    assert len(read_imagenet_det(root=root, splits=("train_1", "train_2"))) == 2  # one is in both


def test_list_file_of_ones_own(root, tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("val/ILSVRC2013_val_00000003\n")
    assert list(read_imagenet_det(root=root, splits=(path,)).files) == ["val/ILSVRC2013_val_00000003.JPEG"]


def test_classes(root, tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("n02 sea lion\nn01 accordion\n")
    a = read_imagenet_det(root=root, splits=("val2",), classes=path)
    assert a.classes == ("sea lion", "accordion") and a.labels.tolist() == [1, 0]
    one = read_imagenet_det(root=root, classes=["n01"])  # all images stay, as in read_coco
    assert len(one) == 4 and one.classes == ("n01",) and one.boxes.tolist() == [[2, 3, 6, 8], [1, 1, 3, 3]]
    with pytest.raises(InputError, match="each once"):
        read_imagenet_det(root=root, classes=["n01", "n01"])
    with pytest.raises(InputError, match=r"no object of them, but of n01, n02"):
        read_imagenet_det(root=root, classes=["n03"])
    with pytest.raises(InputError, match=r"1 in its annotation files: n02\n.*needed: 2, or classes="):
        read_imagenet_det(root=root, splits=("val1",))


def test_kept_records(root, monkeypatch):
    monkeypatch.setattr(ilsvrc, "KEPT_FROM", 1)
    first, test = read_imagenet_det(root=root), read_imagenet_det(root=root, splits=("val2",))
    monkeypatch.setattr(ilsvrc, "parse_xml", None)
    np.testing.assert_array_equal(read_imagenet_det(root=root).boxes, first.boxes)
    np.testing.assert_array_equal(read_imagenet_det(root=root, splits=("val2",)).boxes, test.boxes)


def test_missing_things(root):
    with pytest.raises(InputError, match=r"image list val3\n.*no such file[\s\S]*one of train, val1, val2"):
        read_imagenet_det(root=root, splits=("val3",))
    (root / "Data/DET").rename(root / "Data/other")
    with pytest.raises(InputError, match="no folder Data/DET, but Annotations, Data, ImageSets"):
        read_imagenet_det(root=root)
    (root / "Data/other").rename(root / "Data/DET")
    (root / "Data/DET/val/ILSVRC2013_val_00000003.JPEG").unlink()
    with pytest.raises(InputError, match=r"1 of 1 images are missing; first: val/ILSVRC2013_val_00000003"):
        read_imagenet_det(root=root, splits=("val2",))
    write_list(root, "val2", "ILSVRC2013_val_00000001", "ILSVRC2013_val_00000009")  # neither image nor annotation
    with pytest.raises(InputError, match=r"1 of 2 images are missing; first: val/ILSVRC2013_val_00000009"):
        read_imagenet_det(root=root, splits=("val2",))
    write_list(root, "val2", "ILSVRC2013_train_extra0/ILSVRC2013_train_00000001")
    with pytest.raises(InputError, match="no images"):
        read_imagenet_det(root=root, splits=("val2",))


@pytest.mark.parametrize("outside", [False, True])
def test_names_stay_in_the_folder(root, outside):
    name = str(root / "Data/DET/val/ILSVRC2013_val_00000001") if outside else "../train/../val/ILSVRC2013_val_00000001"
    write_list(root, "mine", name)
    with pytest.raises(InputError, match=rf"the name '{name}'\n.*without \.\."):
        read_imagenet_det(root=root, splits=("mine",))
