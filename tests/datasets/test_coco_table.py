from __future__ import annotations

import copy
import json

import numpy as np
import pytest

from resdet.datasets import coco_table
from resdet.datasets.coco_json import load_coco_json
from resdet.datasets.coco_table import find, read_table, table_of


def row(number, image_id, category_id, bbox, **more):
    row = {"id": number, "image_id": image_id, "category_id": category_id, "bbox": bbox, "iscrowd": 0, "area": 6.5}
    return {**row, **more}


@pytest.fixture
def content():
    return {
        "info": {"contributor": "Zoë"},
        "images": [
            {"id": 30, "file_name": "a/30.png", "height": 10, "width": 20},
            {"id": 10, "file_name": "ö.png", "height": None, "width": 20, "more": [{"x": "},{"}]},
        ],
        "annotations": [
            row(5, 10, 9, [0, 0, 4, 3]),
            row(6, 30, 4, [1.25, 2, 3, 4.75], segmentation=[[1, 2, 3, 4, 5, 6]]),
            row(8, 10, 4, [-1, 0, 20, 10], iscrowd=1, segmentation={"size": [10, 20], "counts": "ab},{cd"}),
            row(7, 30, 4, [1, 1, 0, 5], iscrowd=True, parts=[{"a": 1}, {"b": 2}]),
        ],
        "categories": [{"id": 9, "name": "dog"}, {"id": 4, "name": "cat", "supercategory": "pet"}],
    }


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False))
    return str(path)


def same(one, other):
    assert one.names == other.names and one.categories == other.categories
    np.testing.assert_array_equal(one.image_ids, other.image_ids)
    np.testing.assert_array_equal(one.hw, other.hw)
    assert one.hw.dtype == other.hw.dtype
    assert one.columns.keys() == other.columns.keys()
    for key, column in one.columns.items():
        assert column.dtype == other.columns[key].dtype
        np.testing.assert_array_equal(column, other.columns[key])


def test_by_hand(content, tmp_path):
    table = read_table(write(tmp_path / "a.json", content))
    assert table.image_ids.tolist() == [30, 10] and table.names == ["a/30.png", "ö.png"]
    assert table.hw.tolist() == [[10, 20], [0, 20]]
    assert table.columns["bbox"].tolist() == [[0, 0, 4, 3], [1.25, 2, 3, 4.75], [-1, 0, 20, 10], [1, 1, 0, 5]]
    assert table.columns["iscrowd"].tolist() == [False, False, True, True]
    assert table.columns["id"].tolist() == [5, 6, 8, 7]


@pytest.mark.parametrize("part", [1, 40, 150, 1 << 24])
def test_both_ways_are_the_same(content, tmp_path, monkeypatch, part):
    """However small the parts, and whatever looks like the end of one."""
    monkeypatch.setattr(coco_table, "PART", part)
    path = write(tmp_path / "a.json", content)
    same(read_table(path), table_of(load_coco_json(path)))
    path = write(tmp_path / "b.json", json.dumps(content, indent=1))
    same(read_table(path), table_of(load_coco_json(path)))


def test_without_boxes(content, tmp_path):
    path = write(tmp_path / "a.json", {**content, "annotations": []})
    same(read_table(path), table_of(load_coco_json(path)))
    assert read_table(path).columns["bbox"].shape == (0, 4)


CHANGES = [
    lambda c: c["images"][1].update(id=30),
    lambda c: c["images"][1].update(id=10.0),
    lambda c: c["images"][1].update(file_name="a/30.png"),
    lambda c: c["images"][1].update(file_name="a\0"),
    lambda c: c["images"][1].update(height=-1),
    lambda c: c["images"][1].update(height=2**31),
    lambda c: c.update(images=[]),
    lambda c: c.update(images={}),
    lambda c: c.pop("annotations"),
    lambda c: c.update(categories=[]),
    lambda c: c["categories"][1].update(id=9),
    lambda c: c["categories"][1].update(id="4"),
    lambda c: c["categories"][1].update(name="dog"),
    lambda c: c["categories"].append({"id": 1, "name": "pet"}),  # the heading of cat
    lambda c: c["annotations"][0].pop("area"),
    lambda c: c["annotations"][0].pop("iscrowd"),
    lambda c: c["annotations"][0].update(iscrowd=2),
    lambda c: c["annotations"][0].update(area="6"),
    lambda c: c["annotations"][0].update(id=0),
    lambda c: c["annotations"][0].update(id=6),
    lambda c: c["annotations"][0].update(id=2**63),
    lambda c: c["annotations"][0].update(image_id=11),
    lambda c: c["annotations"][0].update(category_id=5),
    lambda c: c["annotations"][0].update(bbox=[1, 2, 3]),
    lambda c: c["annotations"][0].update(bbox=[float("nan"), 2, 3, 4]),
    lambda c: c["annotations"][0].update(bbox=[2**63, 2, 3, 4]),
    lambda c: c["annotations"].append(row(9, 10, 9, [-0.0, 0.0, 4, 3])),  # once more
    lambda c: [r.update(bbox=[0, 0.1, 0.2, 1]) for r in c["annotations"]],  # fractions
]


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_to_be_repaired_told_or_refused_goes_the_slow_way(content, tmp_path, change):
    changed = copy.deepcopy(content)
    change(changed)
    assert read_table(write(tmp_path / "a.json", changed)) is None
    assert read_table(write(tmp_path / "a.json", content)) is not None


def test_what_is_no_such_file_goes_the_slow_way(content, tmp_path):
    whole = json.dumps(content)
    for text in ("", "[]", "{}", "null", whole[:-1], whole + "x", "[" * 100_000, whole.replace("[5,", "[5;")):
        if text != whole:
            assert read_table(write(tmp_path / "a.json", text)) is None
    (tmp_path / "a.json").write_bytes(whole.replace("Zo", "Zo\\x").encode().replace(b"\\x", b"\xff"))
    assert read_table(str(tmp_path / "a.json")) is None  # not UTF-8, in a part that nobody reads
    assert read_table(str(tmp_path)) is None
    assert read_table(str(tmp_path / "none.json")) is None


def test_find():
    assert find(np.array([7, 3, 5, 9]), np.array([5, 3, 7])).tolist() == [2, 1, 0, -1]
