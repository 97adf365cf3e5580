from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from resdet.datasets import ilsvrc
from resdet.datasets.detection import DetectionDataset
from resdet.datasets.folder import read_folder
from resdet.datasets.imagenet_loc import read_imagenet_loc
from resdet.errors import InputError
from resdet.files import kept_path


def add(root, name, *objects, split="train", size=(20, 10), file_size=(20, 10), xml=True, difficult=0):
    """An image of (width, height) and its annotation file."""
    picture, note = (root / part / "CLS-LOC" / split / name for part in ("Data", "Annotations"))
    for path in (picture, note):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", file_size).save(f"{picture}.JPEG")
    things = "".join(
        f"<object><name>{label}</name><difficult>{difficult}</difficult><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for label, x1, y1, x2, y2 in objects
    )
    if xml:
        w, h = size
        note.with_suffix(".xml").write_text(
            f"<annotation><size><width>{w}</width><height>{h}</height></size>{things}</annotation>"
        )


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "ILSVRC"
    add(root, "n02/n02_1", ("n02", 0, 0, 19, 9), ("n02", 2, 3, 5, 7))
    add(root, "n02/n02_2", xml=False)
    add(root, "n01/n01_1", ("n01", 3, 4, 20, 6))
    add(root, "ILSVRC2012_val_00000001", ("n02", 1, 1, 4, 4), split="val")
    add(root, "ILSVRC2012_val_00000002", ("n01", 1, 1, 4, 4), split="val")
    return root


def test_by_hand(root, caplog):
    a = read_imagenet_loc(root=root)
    assert list(a.files) == ["n01/n01_1.JPEG", "n02/n02_1.JPEG"] and a.classes == ("n01", "n02")
    # pixels from 0, the last included: 0..19 of 20 columns is 0..20, 2..5 is 2..6; 20 of 20 columns is the end already
    np.testing.assert_array_equal(a.boxes, np.float32([[3, 4, 20, 7], [0, 0, 20, 10], [2, 3, 6, 8]]))
    np.testing.assert_array_equal(a.labels, [0, 1, 1])
    np.testing.assert_array_equal(a.first, [0, 1, 3])
    np.testing.assert_array_equal(a.image_ids, [0, 1])
    np.testing.assert_array_equal(a.hw, [[10, 20], [10, 20]])
    assert a.path(1) == str(root / "Data/CLS-LOC/train/n02/n02_1.JPEG")
    (record,) = caplog.records
    assert "1 of 3 images are left out: 1 without an annotation file, 0 without a box" in record.getMessage()
    assert DetectionDataset(a)[1][1].labels.tolist() == [1, 1]


def test_labels_are_those_of_the_classification_folders(root):
    with pytest.raises(InputError, match="val"):  # a flat folder is no folder-per-class set
        read_folder(root / "Data/CLS-LOC", "val")
    a = read_imagenet_loc(root=root.parent, split="val")  # the folder above is fine too
    assert a.classes == ("n01", "n02") and a.labels.tolist() == [1, 0]
    assert list(a.files) == ["ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000002.JPEG"]
    # sorted into folders, with the annotation files beside each other still
    data = root / "Data/CLS-LOC/val"
    for name, number in (("n02", 1), ("n01", 2)):
        (data / name).mkdir()
        file = f"ILSVRC2012_val_0000000{number}.JPEG"
        (data / file).rename(data / name / file)
    b = read_imagenet_loc(root=root, split="val")
    index = read_folder(root / "Data/CLS-LOC", "val")
    assert list(b.files) == list(index.files) and b.labels.tolist() == index.labels.tolist() == [0, 1]


def test_the_class_of_the_image_decides(root, caplog):
    add(root, "n02/n02_3", ("n01", 1, 1, 4, 4), ("n02", 1, 1, 5, 5))
    add(root, "n02/n02_4", ("n01", 1, 1, 4, 4))
    a = read_imagenet_loc(root=root)
    assert list(a.files)[-1] == "n02/n02_3.JPEG" and a.labels.tolist() == [0, 1, 1, 1]
    assert "2 of 5 images are left out: 1 without an annotation file, 1 without a box" in caplog.text


def test_lists(root, tmp_path):
    sets = root / "ImageSets/CLS-LOC"
    sets.mkdir(parents=True)
    (sets / "train_loc.txt").write_text("n02/n02_1 1\n")
    assert list(read_imagenet_loc(root=root, image_list="train_loc").files) == ["n02/n02_1.JPEG"]
    solution = tmp_path / "LOC_val_solution.csv"
    solution.write_text("ImageId,PredictionString\nILSVRC2012_val_00000002,n01 1 1 4 4\n")
    assert read_imagenet_loc(root=root, split="val", image_list=solution).labels.tolist() == [0]
    black = tmp_path / "black.txt"
    black.write_text("2\n")  # the second of the sorted images
    assert read_imagenet_loc(root=root, split="val", blacklist=black).labels.tolist() == [1]
    black.write_text("n01_1\n")
    assert list(read_imagenet_loc(root=root, blacklist=black).files) == ["n02/n02_1.JPEG"]
    with pytest.raises(InputError, match=r"image list train_cls\n.*no such file[\s\S]*one of train_loc"):
        read_imagenet_loc(root=root, image_list="train_cls")
    black.write_text("n01_1\nn01_9\n")
    with pytest.raises(InputError, match=r"1 of 2 names are no image there: n01_9"):
        read_imagenet_loc(root=root, blacklist=black)
    black.write_text("\n")
    with pytest.raises(InputError, match="no names"):
        read_imagenet_loc(root=root, blacklist=black)


def test_numbers_count_names_without_their_folders(root, tmp_path):
    for name, number in (("n01", 1), ("n02", 2), ("n01", 3)):  # by folder the order would be 1, 3, 2
        add(root, f"{name}/v_{number}", (name, 1, 1, 4, 4), split="sorted")
    black = tmp_path / "black.txt"
    black.write_text("3\n")
    assert list(read_imagenet_loc(root=root, split="sorted", blacklist=black).files) == ["n01/v_1.JPEG", "n02/v_2.JPEG"]
    listed = tmp_path / "listed.txt"
    listed.write_text("v_2\nv_3\n")  # numbers count all images, not those that are read
    how = {"root": root, "split": "sorted", "image_list": listed, "blacklist": black}
    assert list(read_imagenet_loc(**how).files) == ["n02/v_2.JPEG"]


def test_difficult_boxes_do_not_count(root, caplog):
    add(root, "n01/n01_0", ("n01", 1, 1, 4, 4), ("n01", 2, 2, 6, 6), difficult=1)
    a = read_imagenet_loc(root=root)
    assert list(a.files) == ["n01/n01_1.JPEG", "n02/n02_1.JPEG"] and not a.ignore.any()
    np.testing.assert_array_equal(a.boxes, np.float32([[3, 4, 20, 7], [0, 0, 20, 10], [2, 3, 6, 8]]))
    assert a.first.tolist() == [0, 1, 3] and len(a.labels) == len(a.areas) == len(a.box_ids) == 3
    assert "2 of 4 images are left out: 1 without an annotation file, 1 without a box" in caplog.text


def test_flat_images_with_annotation_files_in_folders(root):
    notes = root / "Annotations/CLS-LOC/val"
    for name, number in (("n02", 1), ("n01", 2)):
        (notes / name).mkdir()
        (notes / f"ILSVRC2012_val_0000000{number}.xml").rename(notes / name / f"ILSVRC2012_val_0000000{number}.xml")
    assert read_imagenet_loc(root=root, split="val").labels.tolist() == [1, 0]
    other = notes / "n01/ILSVRC2012_val_00000001.xml"  # a name in two folders is nobody's
    other.write_text((notes / "n02/ILSVRC2012_val_00000001.xml").read_text())
    assert list(read_imagenet_loc(root=root, split="val").files) == ["ILSVRC2012_val_00000002.JPEG"]


def test_classes(root):
    a = read_imagenet_loc(root=root, classes=["n02"])
    assert a.classes == ("n02",) and list(a.files) == ["n02/n02_1.JPEG"] and a.labels.tolist() == [0, 0]
    assert read_imagenet_loc(root=root, split="val", classes=["n02", "n01"]).labels.tolist() == [0, 1]
    with pytest.raises(InputError, match="each once"):
        read_imagenet_loc(root=root, classes=["n02", "n02"])
    add(root, "ILSVRC2012_val_00000003", ("n03", 1, 1, 4, 4), split="val")
    with pytest.raises(InputError, match=r"val_00000003\.xml\n.*'n03'\n.*n01"):
        read_imagenet_loc(root=root, split="val")


def test_a_validation_set_alone(tmp_path):
    root = tmp_path / "ILSVRC"
    add(root, "v1", ("n05", 1, 1, 4, 4), split="val")
    assert read_imagenet_loc(root=root, split="val").classes == ("n05",)  # what occurs
    (tmp_path / "LOC_synset_mapping.txt").write_text("n04 a thing, thing\nn05 another\n")
    a = read_imagenet_loc(root=root, split="val")
    assert a.classes == ("n04", "n05") and a.labels.tolist() == [1]
    other = read_imagenet_loc(
        root="", split="val", images=root / "Data/CLS-LOC/val", annotations=root / "Annotations/CLS-LOC/val"
    )
    assert other.labels.tolist() == [0] and other.boxes.tolist() == [[1, 1, 5, 5]]


def test_sizes(root, caplog):
    # annotated as shown, half as large: boxes are doubled. Another aspect is not believed. None is read from the file.
    add(root, "n01/n01_2", ("n01", 0, 1, 4, 9), size=(10, 20), file_size=(20, 40))
    add(root, "n01/n01_3", ("n01", 0, 1, 4, 3), size=(7, 20), file_size=(20, 5))
    add(root, "n01/n01_4", ("n01", 0, 1, 4, 3), size=(0, 0), file_size=(20, 5))
    a = read_imagenet_loc(root=root, classes=["n01"])
    np.testing.assert_array_equal(a.boxes[1:], np.float32([[0, 2, 10, 20], [0, 1, 5, 4], [0, 1, 5, 4]]))
    np.testing.assert_array_equal(a.hw[1:], [[40, 20], [5, 20], [5, 20]])
    assert "1 of 4 annotation files give another size than the image has (boxes are scaled)" in caplog.text
    assert "1 of 4 annotation files give another size than the image has (of another aspect, not" in caplog.text
    for index in range(4):
        DetectionDataset(a)[index]


def test_annotated_before_the_rotation(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    add(root, "n01/n01_2", ("n01", 0, 0, 19, 9))
    Image.new("RGB", (20, 10)).save(root / "Data/CLS-LOC/train/n01/n01_2.JPEG", exif=exif)
    a = read_imagenet_loc(root=root, classes=["n01"])
    assert a.hw[1].tolist() == [10, 20] and a.boxes[1].tolist() == [0, 0, 20, 10]
    assert DetectionDataset(a)[1][0].shape == (3, 10, 20)


def test_boxes_at_fault(root, caplog):
    add(root, "n01/n01_2", ("n01", 5, 5, 5, 8), ("n01", -3, 0, 4, 4), ("n01", 0, 0, 30, 4))
    a = read_imagenet_loc(root=root, classes=["n01"])
    np.testing.assert_array_equal(a.boxes[1:], np.float32([[0, 0, 5, 5], [0, 0, 20, 5]]))
    assert "3 of 4 boxes at fault: 1 without width or height (dropped), 2 partly outside" in caplog.text
    assert "n01/n01_2.JPEG, object 1" in caplog.text


def test_kept_records(root, monkeypatch, caplog):
    monkeypatch.setattr(ilsvrc, "KEPT_FROM", 1)
    first = read_imagenet_loc(root=root)
    kept = kept_path(root, "CLS-LOC.train")
    assert kept.is_file() and not list(root.parent.rglob("*.npz"))
    with monkeypatch.context() as without:
        without.setattr(ilsvrc, "parse_xml", None)
        again = read_imagenet_loc(root=root)
    for name in ("boxes", "labels", "hw", "first", "ignore"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    add(root, "n01/n01_2", ("n01", 1, 1, 2, 2))  # the folder has changed
    assert len(read_imagenet_loc(root=root)) == 3
    with np.load(kept) as file:
        good = dict(file)
    for name, wrong in (
        ("boxes", good["boxes"].astype(np.float32)),
        ("boxes", good["boxes"][:, :3]),
        ("names", good["names"][1:]),
        ("difficult", good["difficult"].astype(np.int64)),
        ("hw", good["hw"] * 0),
        ("hw", good["hw"][1:]),
        ("rows", good["rows"][::-1]),
        ("rows", good["rows"] + 1),
        ("names", np.arange(len(good["names"]))),
    ):
        np.savez(kept, **{**good, name: wrong})
        read_imagenet_loc(root=root)
        with np.load(kept) as file:  # read and written anew
            np.testing.assert_array_equal(file[name], good[name], err_msg=name, strict=True)
    kept.write_bytes(b"cut")
    assert len(read_imagenet_loc(root=root)) == 3
    kept.unlink()
    kept.mkdir()  # cannot be written
    assert len(read_imagenet_loc(root=root)) == 3


def test_another_version_is_not_believed(root, monkeypatch):
    monkeypatch.setattr(ilsvrc, "KEPT_FROM", 1)
    read_imagenet_loc(root=root)
    monkeypatch.setattr(ilsvrc, "VERSION", ilsvrc.VERSION + 1)
    calls, parse = [], ilsvrc.parse_xml
    monkeypatch.setattr(ilsvrc, "parse_xml", lambda path: (calls.append(path), parse(path))[1])
    for _ in range(2):
        read_imagenet_loc(root=root)
    assert len(calls) == 2  # of two files, once


def test_missing_things(root, tmp_path):
    with pytest.raises(InputError, match=r"no such folder\n.*Data/CLS-LOC"):
        read_imagenet_loc(root=tmp_path / "nothing")
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="no folder Data/CLS-LOC, but nothing"):
        read_imagenet_loc(root=tmp_path / "other")
    with pytest.raises(InputError, match=r"CLS-LOC/test\n.*no such folder"):
        read_imagenet_loc(root=root, split="test")
    (root / "Annotations/CLS-LOC/train/n01/n01_1.xml").write_text("<annotation>")
    with pytest.raises(InputError, match=r"n01_1\.xml\n.*broken XML"):
        read_imagenet_loc(root=root)
    note = root / "Annotations/CLS-LOC/val/ILSVRC2012_val_00000001.xml"
    note.write_text(note.read_text().replace("<height>10", "<height>-10"))
    with pytest.raises(InputError, match=r"val_00000001\.xml\n.*height -10 and width 20"):
        read_imagenet_loc(root=root, split="val")
    for path in (root / "Annotations/CLS-LOC/val").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="no image with a box: of 2 2 without an annotation file"):
        read_imagenet_loc(root=root, split="val")
    for path in (root / "Data/CLS-LOC/val").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="no images"):
        read_imagenet_loc(root=root, split="val")
