from __future__ import annotations

import json
import logging
from dataclasses import fields

import numpy as np
import pytest
from PIL import Image

from resdet.datasets import coco, kept_annotations
from resdet.datasets.coco import read_coco
from resdet.datasets.detection import DetectionDataset
from resdet.errors import InputError
from resdet.files import cache_folder


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A file with a box that leaves its image; every size is large enough to be kept."""
    monkeypatch.setattr(kept_annotations, "LEAST_BYTES", 0)
    monkeypatch.setenv("RESDET_CACHE", str(tmp_path / "cache"))
    write(tmp_path)
    for name in "abc":
        Image.new("RGB", (20, 10)).save(tmp_path / f"{name}.png")
    return tmp_path / "set.json"


def write(folder, *, more=(), **image):
    boxes = [(3, 1, [0, 0, 4, 3]), (1, 2, [1.5, 2, 3, 4]), (3, 2, [15, 5, 10, 5]), *more]
    rows = [
        {"id": n, "image_id": i, "category_id": c, "bbox": box, "iscrowd": 0, "area": 5.5}
        for n, (i, c, box) in enumerate(boxes, 1)
    ]
    images = [{"id": i, "file_name": f"{n}.png", "height": 10, "width": 20} for i, n in enumerate("abc", 1)]
    images[0].update(image)
    content = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "x"}, {"id": 2, "name": "y"}]}
    (folder / "set.json").write_text(json.dumps(content))


def kept() -> list:
    return sorted(cache_folder().glob("*"))


def refuse(*_, **__):
    raise AssertionError("the file was read")


def same(one, other):
    for name in (f.name for f in fields(one) if f.name not in ("files", "repaired")):
        a, b = getattr(one, name), getattr(other, name)
        assert getattr(a, "dtype", None) == getattr(b, "dtype", None)
        np.testing.assert_array_equal(a, b)
    assert list(one.files) == list(other.files)
    for a, b in zip(one.written, other.written, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype


def test_the_second_time_it_comes_from_the_cache(source, monkeypatch, caplog):
    first = read_coco(source, source.parent)
    (record,) = caplog.records
    assert "1 of 3 boxes at fault: 1 partly outside" in record.getMessage()
    monkeypatch.setattr(coco, "read_table", refuse)
    monkeypatch.setattr(coco, "load_coco_json", refuse)
    second = read_coco(source, source.parent)
    same(first, second)
    assert caplog.records[1].getMessage() == record.getMessage()  # and is said again
    assert len(kept()) == 1 and kept()[0].stat().st_mode & 0o777 == source.stat().st_mode & 0o777
    image, target = DetectionDataset(second)[2]
    assert image.shape == (3, 10, 20) and target.boxes.tolist() == [[0, 0, 4, 3], [15, 5, 20, 10]]
    target.boxes[0] = 7  # of this process alone
    assert read_coco(source, source.parent).boxes.tolist() == first.boxes.tolist()


def test_each_way_to_read_has_a_place_of_its_own(source):
    read_coco(source, source.parent)
    one = read_coco(source, source.parent, classes=["y"])
    assert one.boxes.tolist() == [[1.5, 2, 4.5, 6], [15, 5, 20, 10]]
    same(read_coco(source, source.parent, classes=["y"]), one)
    assert read_coco(source, source.parent, classes=["y", "x"]).classes == ("y", "x")
    for _ in range(2):
        with pytest.raises(InputError, match="1 of 3 boxes at fault"):
            read_coco(source, source.parent, strict=True)
    assert len(kept()) == 3


def test_another_content_is_read_anew(source):
    read_coco(source, source.parent)
    write(source.parent, more=[(2, 1, [1, 1, 2, 2])])
    assert len(read_coco(source, source.parent).boxes) == 4
    assert len(kept()) == 1


@pytest.mark.parametrize("place", ["start", "middle", "end", "half", "empty"])
def test_a_damaged_one_is_made_anew(source, place):
    first = read_coco(source, source.parent)
    (path,) = kept()
    whole = path.read_bytes()
    broken = bytearray(whole)
    if place in ("start", "middle", "end"):
        broken[{"start": 3, "middle": len(whole) // 2, "end": -1}[place]] ^= 16
    path.write_bytes(broken[: {"half": len(whole) // 2, "empty": 0}.get(place)])
    same(read_coco(source, source.parent), first)
    assert path.read_bytes() == whole  # as it was


def test_images_are_looked_for_each_time(source, caplog):
    read_coco(source, source.parent)
    (source.parent / "a.png").rename(source.parent / "a.jpg")
    found = read_coco(source, source.parent)
    assert list(found.files) == ["a.jpg", "b.png", "c.png"] and "found by the last part" in caplog.text
    (source.parent / "b.png").unlink()
    with pytest.raises(InputError, match=r"1 of 3 images are missing; first: b\.png"):
        read_coco(source, source.parent)


def test_sizes_of_headers_are_not_kept(source):
    write(source.parent, height=None)
    assert read_coco(source, source.parent).hw.tolist() == [[10, 20]] * 3
    assert kept() == []


def test_small_files_and_folders_that_refuse(source, monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="resdet")
    (source.parent / "file").write_text("")
    monkeypatch.setenv("RESDET_CACHE", str(source.parent / "file"))
    assert len(read_coco(source, source.parent)) == 3 and "is not kept" in caplog.text
    monkeypatch.setenv("RESDET_CACHE", str(source.parent / "cache"))
    monkeypatch.setattr(kept_annotations, "LEAST_BYTES", 10_000)
    assert len(read_coco(source, source.parent)) == 3 and kept() == []
