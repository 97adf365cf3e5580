from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from resdet.datasets.coco import read_coco, to_coco
from resdet.datasets.coco_json import load_coco_json
from resdet.errors import InputError


def annotation(number, image_id, category_id, bbox, **more):
    row = {"id": number, "image_id": image_id, "category_id": category_id, "bbox": bbox, "iscrowd": 0, "area": 6.0}
    return {**row, **more}


@pytest.fixture
def content():
    """Three 20 x 10 images, the second empty; category ids with holes, out of order."""
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 10, "width": 20} for i in (30, 10, 20)],
        "annotations": [
            annotation(5, 20, 9, [0, 0, 4, 3]),
            annotation(6, 30, 4, [1, 2, 3, 4], area=7.5),
            annotation(7, 20, 4, [0, 0, 20, 10], iscrowd=1),
        ],
        "categories": [{"id": 9, "name": "dog"}, {"id": 4, "name": "cat"}],
    }


@pytest.fixture
def read(tmp_path):
    def write_and_read(content, **options):
        (tmp_path / "ann.json").write_text(content if isinstance(content, str) else json.dumps(content))
        for name in ("10.png", "20.png", "30.png"):
            Image.new("RGB", (20, 10)).save(tmp_path / name)
        return read_coco(tmp_path / "ann.json", tmp_path, **options)

    return write_and_read


def test_by_hand(content, read, caplog):
    a = read(content, strict=True)
    assert a.classes == ("cat", "dog")  # in id order: 4, 9
    np.testing.assert_array_equal(a.category_ids, [4, 9])
    np.testing.assert_array_equal(a.image_ids, [30, 10, 20])
    assert list(a.files) == ["30.png", "10.png", "20.png"]
    np.testing.assert_array_equal(a.first, [0, 1, 1, 3])  # one box, none, two
    np.testing.assert_array_equal(a.boxes, np.array([[1, 2, 4, 6], [0, 0, 4, 3], [0, 0, 20, 10]], dtype=np.float32))
    np.testing.assert_array_equal(a.labels, [0, 1, 0])
    np.testing.assert_array_equal(a.ignore, [False, False, True])
    np.testing.assert_array_equal(a.areas, np.array([7.5, 6, 6], dtype=np.float32))
    np.testing.assert_array_equal(a.box_ids, [6, 5, 7])
    np.testing.assert_array_equal(a.hw, [[10, 20]] * 3)
    assert (a.boxes.dtype, a.labels.dtype, a.hw.dtype) == (np.float32, np.int64, np.int32)
    assert not caplog.records


def test_to_coco_is_the_inverse(content, read):
    again = to_coco(read(content))
    by_id = {row["id"]: row for row in content["annotations"]}
    assert [{**row, "id": 0} for row in again["annotations"]] == [{**by_id[i], "id": 0} for i in (6, 5, 7)]
    assert again["images"] == content["images"]


def test_category_id_zero(content, read):
    content["categories"][1]["id"] = 0
    for row in content["annotations"][1:]:
        row["category_id"] = 0
    a = read(content, strict=True)
    assert a.classes == ("cat", "dog")
    np.testing.assert_array_equal(a.labels, [0, 1, 0])


def test_classes_select_and_reorder(content, read):
    a = read(content, classes=["dog", "cat"])
    np.testing.assert_array_equal(a.labels, [1, 0, 1])
    np.testing.assert_array_equal(a.category_ids, [9, 4])
    a = read(content, classes=["dog"])
    assert len(a) == 3 and a.boxes.tolist() == [[0, 0, 4, 3]]
    np.testing.assert_array_equal(a.first, [0, 0, 0, 1])
    assert read(content, classes=["cat"]).box_ids.tolist() == [6, 7]  # leaves out the highest category id
    with pytest.raises(InputError, match=r"'dogg'\n.*did you mean 'dog'"):
        read(content, classes=["dogg"])
    with pytest.raises(InputError, match="each once"):
        read(content, classes=["dog", "dog"])


def test_no_annotations_at_all(content, read):
    a = read({**content, "annotations": []})
    assert a.boxes.shape == (0, 4) and a.first.tolist() == [0, 0, 0, 0]


def test_size_from_the_header(content, read):
    for image in content["images"]:
        del image["height"]
    np.testing.assert_array_equal(read(content).hw, [[10, 20]] * 3)


def test_boxes_at_fault(content, read, caplog):
    content["annotations"] += [annotation(8, 10, 4, [15, 5, 10, 10]), annotation(9, 10, 4, [1, 1, 0, 5])]
    content["annotations"] += [annotation(11, 10, 4, [float("nan"), 1, 2, 5])]
    a = read(content)
    np.testing.assert_array_equal(a.boxes[a.rows(1)], [[15, 5, 20, 10]])
    assert a.box_ids.tolist() == [6, 8, 5, 7]
    (record,) = caplog.records
    assert "3 of 6 boxes at fault" in record.getMessage()
    assert "10.png, annotation 9, bbox [1.0, 1.0, 0.0, 5.0] (x, y, w, h)" in record.getMessage()
    with pytest.raises(InputError, match=r"ann\.json\n.*3 of 6 boxes"):
        read(content, strict=True)


@pytest.mark.parametrize("ids", [[0, 1, 2], [3, 3, 4], [None, 1, 2], ["a", "b", "c"]])
def test_annotation_ids_are_renumbered(content, read, caplog, ids):
    for row, number in zip(content["annotations"], ids, strict=True):
        row["id"] = number
    assert sorted(read(content).box_ids.tolist()) == [1, 2, 3]
    assert len(caplog.records) == 1 and "renumbered from 1" in caplog.text
    with pytest.raises(InputError, match="below 1 or used twice"):
        read(content, strict=True)


def test_missing_iscrowd_and_area(content, read, tmp_path, caplog):
    for row in content["annotations"][:2]:
        del row["iscrowd"], row["area"]
    a = read(content)
    np.testing.assert_array_equal(a.areas, np.array([12, 12, 6], dtype=np.float32))  # 3 * 4, 4 * 3, as the file says
    np.testing.assert_array_equal(a.ignore, [False, False, True])
    assert len(caplog.records) == 1 and "2 of 3 annotations have no 'iscrowd'" in caplog.text
    rows = load_coco_json(tmp_path / "ann.json")["annotations"]
    assert rows[0]["iscrowd"] == 0 and rows[0]["area"] == 12
    with pytest.raises(InputError, match="no 'area'"):
        read(content, strict=True)


def test_repeated_file_names_are_fine(content, read):
    content["images"][1]["file_name"] = "30.png"
    assert list(read(content).files) == ["30.png", "30.png", "20.png"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("categories"), "needed: COCO ground truth"),
        (lambda c: c.update(annotations={}), "'annotations' entry that is not a list"),
        (lambda c: c.update(images=[]), "'images' is empty"),
        (lambda c: c.update(categories=[]), "'categories' is empty"),
        (lambda c: c["images"][2].pop("id"), "image number 3\n.*no 'id'"),
        (lambda c: c["images"][2].update(id=30), "id 30 twice: image numbers 1 and 3"),
        (lambda c: c["images"][2].update(id="x"), "id 'x'\n.*an integer"),
        (lambda c: c["images"][2].update(height="ten"), "image 20\n.*height 'ten'"),
        (lambda c: c["images"][2].update(width=float("nan")), "width nan"),
        (lambda c: c["images"][2].pop("file_name"), "no 'file_name'"),
        (lambda c: c["images"][2].update(file_name="no.png"), "1 of 3 images are missing; first: no.png"),
        (lambda c: c["categories"][1].update(id=9), "id 9 twice: category numbers 1 and 2"),
        (lambda c: c["categories"][1].update(name="dog"), "name 'dog' twice"),
        (lambda c: c["annotations"][1].update(category_id=5), r"annotation 6\n.*category_id 5\n.*\(2 known: 4, 9\)"),
        (lambda c: c["annotations"][1].update(image_id=5), "annotation 6\n.*image_id 5\n.*3 known: 10, 20, 30"),
        (lambda c: c["annotations"][1].pop("image_id"), "annotation 6\n.*no 'image_id'"),
        (lambda c: c["annotations"][1].pop("bbox"), "annotation 6\n.*no 'bbox'"),
        (lambda c: c["annotations"][1].update(bbox=[1, 2, 3]), r"annotation 6\n.*bbox \[1, 2, 3\]\n.*four numbers"),
        (lambda c: c["annotations"][1].update(bbox=[1, 2, 3, "4"]), r"annotation 6\n.*'4'"),
        (lambda c: c["annotations"][1].update(bbox=[1, 2, 3, None]), "annotation 6\n.*None"),
        (lambda c: c["annotations"][1].update(area="big"), "annotation 6\n.*area 'big'"),
        (lambda c: c["annotations"][1].update(area=float("nan")), "annotation 6\n.*area nan\n.*finite"),
        (lambda c: c["annotations"][1].update(iscrowd=2), "annotation 6\n.*iscrowd 2\n.*0 or 1"),
        (lambda c: c["annotations"][1].update(bbox=[[1], 2, 3, 4]), r"annotation 6\n.*\[\[1\], 2, 3, 4\]"),
        (lambda c: c["annotations"][1].update(bbox=[10**400, 2, 3, 4]), r"annotation 6[\s\S]*four numbers"),
        (lambda c: c["images"][2].update(id=2**63), "image number 3"),
        (lambda c: c["images"][2].update(file_name="\ud800.png"), "image number 3"),
        (lambda c: c["images"][2].update(file_name="a\0.png"), "image number 3"),
        (
            lambda c: [row.update(bbox=[0.1, 0.2, 0.3, 0.4]) for row in c["annotations"]],
            "all boxes are smaller than one pixel.*\n.*pixels: multiply",
        ),
        (lambda c: c["annotations"][1].update(bbox=None, segmentation=[["a", 1]]), "a broken segmentation"),
        (
            lambda c: c["annotations"][1].update(bbox=None, segmentation={"size": [10**9, 10**9], "counts": "1"}),
            "a broken segmentation",
        ),
    ],
)
def test_unusable_content(content, read, change, message):
    change(content)
    with pytest.raises(InputError, match=message) as error:
        read(content)
    assert "ann.json" in str(error.value)


# --- as labelling tools write it


def test_ids_as_texts_and_with_a_point(content, read, caplog):
    expected = read(content)
    for row in content["images"]:
        row["id"] = str(row["id"])
    for row in content["annotations"]:
        row.update(image_id=float(row["image_id"]), category_id=str(row["category_id"]))
    data = read(content)
    np.testing.assert_array_equal(data.boxes, expected.boxes)
    np.testing.assert_array_equal(data.labels, expected.labels)
    assert "9 ids are texts or have a point" in caplog.text
    with pytest.raises(InputError, match="9 ids are texts"):
        read(content, strict=True)


def test_boxes_of_polygons_and_masks(content, read, caplog):
    rows = content["annotations"]
    rows[0].update(bbox=[], segmentation=[[2, 1, 6, 1, 6, 5], [8, 3, 9, 3, 9, 4]])
    rows[1].pop("bbox")
    # Column by column of a mask 10 high and 20 wide: 30 zeros, then 4 ones, so column 3, rows 0 to 3.
    rows[1]["segmentation"] = {"size": [10, 20], "counts": [30, 4, 166]}
    data = read(content)
    assert data.boxes.tolist() == [[3, 0, 4, 4], [2, 1, 9, 5], [0, 0, 20, 10]]
    assert "2 annotations have no 'bbox' (that of their segmentation taken)" in caplog.text


def test_the_heading_of_roboflow_is_no_class(content, read, caplog):
    content["categories"] = [
        {"id": 0, "name": "pets", "supercategory": "none"},
        *({**row, "supercategory": "pets"} for row in content["categories"]),
    ]
    assert read(content).classes == ("cat", "dog")
    assert "pets: no class but a heading of others" in caplog.text
    content["annotations"][0]["category_id"] = 0  # with a box it is one
    assert read(content).classes == ("pets", "cat", "dog")


def test_what_is_written_twice_is_told(content, read, caplog):
    content["annotations"].append({**content["annotations"][0], "id": 70})
    content["images"][1]["file_name"] = "30.png"
    assert len(read(content).boxes) == 4
    assert "1 annotations are written twice, box and all; 1 images have a file of another id" in caplog.text


def test_no_annotations_are_none(content, read):
    content.pop("annotations")
    assert len(read(content).boxes) == 0


def test_endless_nesting(read):
    with pytest.raises(InputError, match=r"lists in lists|broken JSON"):
        read('{"images": ' + "[" * 100_000)


def test_a_results_file_is_told_apart(read):
    with pytest.raises(InputError, match="a list"):
        read([{"image_id": 1}])


def test_unreadable_files(content, read, tmp_path):
    with pytest.raises(InputError, match="line 2, column 5"):
        read('{"images":\n    nonsense')
    (tmp_path / "ann.json").write_bytes(b'"\xff\xfe\x00"')
    with pytest.raises(InputError, match=r"ann\.json\n"):
        load_coco_json(tmp_path / "ann.json")
    with pytest.raises(InputError, match=r"No such file.*\n.*instances_train2017\.json"):
        load_coco_json(tmp_path / "none.json")
    read(content)
    with pytest.raises(InputError, match=r"image folder .*\n.*no such folder"):
        read_coco(tmp_path / "ann.json", tmp_path / "none")
