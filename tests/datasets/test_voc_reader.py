from __future__ import annotations

import os

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
    with pytest.raises(InputError, match=r"trainval\.txt\n.*no such file\n.*none, put one image name"):
        read_voc([(root.parent, "trainval")])
    with pytest.raises(InputError, match=r"no XML file\n.*Annotations/\*\.xml, JPEGImages"):
        read_voc([(root / "JPEGImages", "trainval")])
    with pytest.raises(InputError, match="no such folder"):
        read_voc([(root / "nowhere", "trainval")])
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
        ('<?xml version="1.0"?><annotation>\udce9</annotation>', "broken XML: not well-formed"),
        (f"<annotation>{thing('cat', 1, 2, 3, 4, difficult='hard')}</annotation>", r"object 1\n.*<difficult> 'hard'"),
        (f"<annotation>{thing('cat', 1, 2, 3, 4, difficult=2)}</annotation>", r"object 1\n.*<difficult> '2'"),
        (f"<annotation>{thing('c' * 101, 1, 2, 3, 4)}</annotation>", r"object 1\n.*101 characters: cccc"),
    ],
)
def test_broken_annotation(root, body, message):
    (root / "Annotations/000003.xml").write_bytes(body.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=r"000003\.xml(.|\n)*" + message):
        read_voc([(root, "test")])


def test_an_annotation_that_is_no_file(root):
    (root / "Annotations/000003.xml").unlink()
    os.mkfifo(root / "Annotations/000003.xml")
    with pytest.raises(InputError, match=r"000003\.xml\n.*a pipe"):
        read_voc([(root, "test")])


# --- as labelling tools and people write it


@pytest.mark.parametrize(
    ("word", "flag"),
    [("0", 0), ("1", 1), ("0.0", 0), ("1.0", 1), ("False", 0), ("TRUE", 1), ("no", 0), ("yes", 1), ("", 0), (" ", 0)],
)
def test_words_for_difficult(root, word, flag):
    add(root, "a", thing("cat", 1, 1, 5, 5, difficult=word))
    split(root, "mine", "a")
    assert read_voc([(root, "mine")]).ignore.tolist() == [bool(flag)]


@pytest.mark.parametrize("encoding", ["gb2312", "utf-16", "latin-1", "shift_jis"])
def test_declared_encodings(root, encoding):
    name = {"latin-1": "hérisson"}.get(encoding, "犬")
    text = f'<?xml version="1.0" encoding="{encoding}"?><annotation>{thing(name, 1, 1, 5, 5)}</annotation>'
    (root / "Annotations/000003.xml").write_bytes(text.encode(encoding))
    data = read_voc([(root, "test")])
    assert name in data.classes and data.boxes.tolist() == [[0, 0, 5, 5]]


def test_an_empty_xml_and_none_at_all_are_background(root, caplog):
    (root / "Annotations/000003.xml").write_text("")
    Image.new("RGB", (8, 6)).save(root / "JPEGImages/000004.png")
    split(root, "test", "000003", "000004", "000001")
    data = read_voc([(root, "test")])
    assert data.first.tolist() == [0, 0, 0, 2] and data.hw.tolist() == [[10, 20], [6, 8], [10, 20]]
    assert list(data.files) == ["000003.jpg", "000004.png", "000001.jpg"]
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "1 images without an XML, taken as background: 000004"
    ]


@pytest.mark.parametrize(
    "lines",
    [
        b"\xef\xbb\xbf000002\r\n000001\r\n",
        "000002\r\n000001\r\n".encode("utf-16"),
        b"JPEGImages/000002.jpg\n./JPEGImages/000001.JPG 1\n",
        b"C:\\data\\images\\000002.jpg\nC:\\data\\images\\000001.jpg\n",
        b"Annotations/000002.xml\n'000001'\n",
        b"/data/upload/4/000002.png\n000001.bmp\n",
    ],
)
def test_lines_of_split_files(root, lines):
    (root / "ImageSets/Main/mine.txt").write_bytes(lines)
    assert list(read_voc([(root, "mine")]).files) == ["000002.jpg", "000001.jpg"]


def test_a_split_file_that_is_no_text(root):
    (root / "ImageSets/Main/mine.txt").write_bytes(b"000001\n\xff\xc3\n")
    with pytest.raises(InputError, match=r"mine\.txt\n.*not text\b.*\n.*UTF-8"):
        read_voc([(root, "mine")])


@pytest.mark.parametrize("ending", [".JPG", ".jpeg", ".Png", ".bmp", ".TIF", ".tiff", ".webp"])
def test_pictures_with_any_ending(root, ending):
    add(root, "x", picture="x.png")
    Image.new("RGB", (20, 10)).save(root / "JPEGImages" / f"x{ending}")
    if ending != ".Png":
        (root / "JPEGImages" / "x.png").unlink()
    split(root, "mine", "x")
    assert read_voc([(root, "mine")]).files[0].lower() in (f"x{ending}".lower(), "x.png")


def test_folders_of_any_names(tmp_path):
    for folder, name in (("images", "a"), ("images/deep", "b")):
        (tmp_path / folder).mkdir(exist_ok=True)
        Image.new("RGB", (20, 10)).save(tmp_path / folder / f"{name}.jpg")
        (tmp_path / "annots").mkdir(exist_ok=True)
        xml = f"<annotation><filename>{name}.jpg</filename>{thing('dog', 1, 1, 3, 3)}</annotation>"
        (tmp_path / "annots" / f"{name}.xml").write_text(xml)
    data = read_voc([(tmp_path, "*")])
    assert list(data.files) == ["images/a.jpg", "images/deep/b.jpg"] and data.classes == ("dog",)
    (tmp_path / "train.txt").write_text("b\n")  # beside them, without ImageSets
    assert list(read_voc([(tmp_path, "train")]).files) == ["images/deep/b.jpg"]


def test_names_that_may_mean_several(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (20, 10)).save(tmp_path / folder / "a.jpg")
        (tmp_path / folder / "a.xml").write_text(f"<annotation>{thing('dog', 1, 1, 3, 3)}</annotation>")
    assert list(read_voc([(tmp_path, "*")]).files) == ["one/a.jpg", "two/a.jpg"]  # each has the image beside it
    (tmp_path / "train.txt").write_text("a.jpg\n")
    with pytest.raises(InputError, match=r"'a\.jpg', which may be one/a, two/a"):
        read_voc([(tmp_path, "train")])
    (tmp_path / "two" / "a.xml").rename(tmp_path / "a.xml")
    with pytest.raises(InputError, match=r"one/a\.jpg, two/a\.jpg"):
        read_voc([(tmp_path, "*")])
