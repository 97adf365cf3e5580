from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from resdet.datasets.voc import read_voc
from resdet.errors import InputError


def thing(name, *corners, difficult=None):
    box = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
    flag = "" if difficult is None else f"<difficult>{difficult}</difficult>"
    # body parts have names and boxes too, and are not objects
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    return f"<object><name>{name}</name>{flag}<bndbox>{box}</bndbox>{part}</object>"


def add(root, name, *objects, size="<size><width>20</width><height>10</height></size>", picture=None, filename=""):
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    xml = f"<annotation><filename>{filename}</filename>{size}{''.join(objects)}</annotation>"
    (root / "Annotations" / f"{name}.xml").write_text(xml)
    Image.new("RGB", (20, 10)).save(root / "JPEGImages" / (picture or f"{name}.jpg"))


def split(root, name, *lines):
    (root / "ImageSets/Main" / f"{name}.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "VOC2007"
    add(root, "000001", thing("dog", 1, 1, 20, 10), thing("cat", 2.5, 3, 5, 8, difficult=1))
    add(root, "000002")
    add(root, "000003", thing("person", 2, 3, 5, 8, difficult=0))
    split(root, "trainval", "000002", "000001")
    split(root, "test", "000003")
    return root


def test_by_hand(root, caplog):
    a = read_voc([(root, "trainval")], classes=["cat", "dog"], strict=True)
    np.testing.assert_array_equal(a.first, [0, 0, 2])  # the split's order: the empty image first
    # one-based and inclusive to continuous: only the first corner moves; 1..20 of 20 columns is 0..20
    np.testing.assert_array_equal(a.boxes, np.array([[0, 0, 20, 10], [1.5, 2, 5, 8]], dtype=np.float32))
    np.testing.assert_array_equal(a.labels, [1, 0])
    np.testing.assert_array_equal(a.ignore, [False, True])
    np.testing.assert_array_equal(a.areas, [200, 21])
    np.testing.assert_array_equal(a.image_ids, [0, 1])
    np.testing.assert_array_equal(a.category_ids, [1, 2])
    np.testing.assert_array_equal(a.box_ids, [1, 2])
    np.testing.assert_array_equal(a.hw, [[10, 20], [10, 20]])
    assert list(a.files) == ["000002.jpg", "000001.jpg"] and a.path(1) == str(root / "JPEGImages/000001.jpg")
    assert not caplog.records


def test_class_names(root):
    assert read_voc([(root, "trainval")]).classes == ("cat", "dog", "person")
    add(root, "000004", thing("zebra", 1, 1, 5, 5))
    # every annotation counts, in a split or not, so that train and test agree
    assert read_voc([(root, "trainval")]).classes == ("cat", "dog", "person", "zebra")
    assert read_voc([(root, "test")]).labels.tolist() == [2]


def test_union(root):
    other = root.parent / "VOC2012"
    add(other, "2008_1", thing("cat", 1, 1, 2, 2))
    split(other, "trainval", "2008_1")
    a = read_voc([(root, "trainval"), (other, "trainval")])
    assert [a.files[i] for i in (0, 2)] == ["VOC2007/JPEGImages/000002.jpg", "VOC2012/JPEGImages/2008_1.jpg"]
    assert a.image_root == str(root.parent) and a.image_ids.tolist() == [0, 1, 2] and a.first.tolist() == [0, 0, 2, 3]
    assert len(read_voc([(root, "trainval"), (root, "test")])) == 3
    with pytest.raises(InputError, match="2 images twice"):
        read_voc([(root, "trainval"), (root, "trainval")])


def test_lines_with_flags_and_names_with_blanks(root):
    add(root, "my photo", thing("cat", 1, 1, 2, 2))
    split(root, "mine", "000001 -1", "", "  my photo")
    assert list(read_voc([(root, "mine")]).files) == ["000001.jpg", "my photo.jpg"]


def test_other_pictures(root):
    add(root, "a", picture="a.png")
    add(root, "b", picture="photo of b.jpg", filename="photo of b.jpg")
    split(root, "mine", "a", "b")
    assert list(read_voc([(root, "mine")]).files) == ["a.png", "photo of b.jpg"]


def test_size_from_the_header(root):
    add(root, "a", size="")
    add(root, "b", size="<size><width>0</width><height>0</height></size>")
    split(root, "mine", "a", "b")
    np.testing.assert_array_equal(read_voc([(root, "mine")]).hw, [[10, 20], [10, 20]])


def test_boxes_at_fault(root, caplog):
    # a stray click (xmin = xmax, ymin = ymax), one that is turned over, NaN, and one that starts at 0 (clipped)
    boxes = [(5, 5, 5, 5), (8, 5, 3, 9), ("nan", 1, 2, 3), (0, 1, 5, 5), (1, 1, 2, 2)]
    names = ("dog", "dog", "dog", "cat", "person")
    add(root, "a", *(thing(name, *box) for name, box in zip(names, boxes, strict=True)))
    split(root, "mine", "000001", "a")
    a = read_voc([(root, "mine")])
    np.testing.assert_array_equal(a.boxes[a.rows(1)], [[0, 0, 5, 5], [0, 0, 2, 2]])
    assert [a.classes[label] for label in a.labels[a.rows(1)]] == ["cat", "person"]
    (record,) = caplog.records
    message = record.getMessage()
    assert "4 of 7 boxes at fault: 1 NaN" in message and "2 without width" in message and "1 partly" in message
    assert "a.jpg, object 1, [5.0, 5.0, 5.0, 5.0]" in message and "object 2, [8.0, 5.0, 3.0, 9.0]" in message
    with pytest.raises(InputError, match="4 of 7"):
        read_voc([(root, "mine")], strict=True)


def test_missing_things(root):
    with pytest.raises(InputError, match="no splits"):
        read_voc([])
    with pytest.raises(InputError, match=r"no folder Annotations\n.*JPEGImages"):
        read_voc([(root.parent, "trainval")])
    split(root, "cat_trainval", "000001 1")
    with pytest.raises(InputError, match=r"val\.txt\n.*no such file\n.*splits there: test, trainval$"):
        read_voc([(root, "val")])
    split(root, "mine", "000001", "000009")
    with pytest.raises(InputError, match=r"000009\.xml\n.*no such file\n.*mine\.txt names"):
        read_voc([(root, "mine")])
    split(root, "mine", "")
    with pytest.raises(InputError, match="no images in the split"):
        read_voc([(root, "mine")])
    (root / "JPEGImages/000003.jpg").unlink()
    with pytest.raises(InputError, match=r"000003\.jpg\n.*no such file\n.*000003\.xml"):
        read_voc([(root, "test")])


def test_unknown_class_name(root):
    with pytest.raises(InputError, match=r"000001\.xml\n.*'cat'\n.*did you mean 'cats'"):
        read_voc([(root, "trainval")], classes=["dog", "cats"])
    with pytest.raises(InputError, match="each once"):
        read_voc([(root, "trainval")], classes=["dog", "cat", "dog"])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("<annotation><object>", r"broken XML: .*line 1"),
        ("<annotation><object><name>cat</name></object></annotation>", r"object 1\n.*no <bndbox>"),
        (f"<annotation>{thing('cat', 1, 2, 3, 'x')}</annotation>", r"object 1\n.*'x'"),
        (f"<annotation>{thing('cat', 1, 2, 3, 4).replace('ymax', 'top')}</annotation>", r"object 1\n.*None"),
        (f"<annotation>{thing('', 1, 2, 3, 4)}</annotation>", r"object 1\n.*no <name>"),
        ("<annotation><size><width>wide</width><height>1</height></size></annotation>", "not a number"),
        ("<annotation><size><width>-2</width><height>1</height></size></annotation>", "height 1 and width -2"),
        ("<annotation><size><width>4e9</width><height>1</height></size></annotation>", "width 4000000000"),
        ('<?xml version="1.0" encoding="no-such"?><annotation/>', "broken XML: unknown encoding"),
        ('<?xml version="1.0" encoding="gb18030"?><annotation/>', "broken XML: multi-byte"),
        (f"<annotation>{thing('c' * 101, 1, 2, 3, 4)}</annotation>", r"object 1\n.*101 characters: cccc"),
    ],
)
def test_broken_annotation(root, body, message):
    (root / "Annotations/000003.xml").write_text(body)
    with pytest.raises(InputError, match=r"000003\.xml(.|\n)*" + message):
        read_voc([(root, "test")])


def test_an_annotation_that_is_no_file(root):
    (root / "Annotations/000003.xml").unlink()
    (root / "Annotations/000003.xml").mkdir()
    with pytest.raises(InputError, match=r"000003\.xml\n.*directory"):
        read_voc([(root, "test")])
