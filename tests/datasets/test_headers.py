"""What will stop a run is said before its first step, or beside its first ones."""

from __future__ import annotations

import json
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from resdet.datasets.coco import read_coco
from resdet.datasets.folder import read_folder
from resdet.datasets.headers import Watch, check_files, check_folder, faults
from resdet.engine.config import load_config
from resdet.engine.train import train
from resdet.errors import InputError


@pytest.fixture
def data(tmp_path):
    for name in "abcd":
        Image.new("RGB", (8, 6)).save(tmp_path / f"{name}.png")
    images = [{"id": n, "file_name": f"{name}.png", "height": 6, "width": 8} for n, name in enumerate("abcd", 1)]
    rows = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}]
    content = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "ann.json").write_text(json.dumps(content))
    return read_coco(tmp_path / "ann.json", tmp_path)


def test_headers(data, tmp_path):
    assert faults(data, whole=False) == faults(data, whole=True) == []
    Image.new("RGB", (6, 8)).save(tmp_path / "a.png")  # annotated as it would be stored
    (tmp_path / "b.png").write_bytes(b"none")
    Image.new("RGB", (8, 7)).save(tmp_path / "c.png")
    (tmp_path / "d.png").unlink()
    found = [str(fault.error) for fault in faults(data, whole=False)]
    assert len(found) == 3 and "does not decode" in found[0] and "7 x 8 pixels" in found[1] and "no such" in found[2]
    with pytest.raises(InputError, match=r"ann\.json\n.*3 of 4 validation images that will not be read.*b\.png"):
        check_files(data, "validation images", whole=False)


def test_half_images(data, tmp_path, caplog):
    png = (tmp_path / "a.png").read_bytes()
    start, end = png.index(b"IDAT") - 4, png.index(b"IEND") - 4
    rows = zlib.compress(zlib.decompress(png[start + 8 : end - 4])[: 4 * (1 + 8 * 3)])  # four of six
    half = struct.pack(">I", len(rows)) + b"IDAT" + rows + struct.pack(">I", zlib.crc32(b"IDAT" + rows))
    (tmp_path / "c.png").write_bytes(png[:start] + half + png[end:])
    assert faults(data, whole=False) == []
    (found,) = faults(data, whole=True)
    assert found.row == 2 and "cut short: its last 2 rows are missing" in str(found.error)
    with pytest.raises(InputError, match=r"1 of 4 validation images that will not be read.*\n.*skip_unreadable=True"):
        check_files(data, "validation images", whole=True)
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "c.png", "jpeg", quality=90)
    (tmp_path / "c.png").write_bytes((tmp_path / "c.png").read_bytes()[:-2])
    assert faults(data, whole=True) == []
    told = f"1 of 4 images lack their last bytes, but no rows, and are read; the first: {tmp_path / 'c.png'}"
    assert [line.partition(": ")[2] for line in caplog.messages] == [told]


def test_headers_of_a_folder_of_classes(tmp_path, cls_config, tiny):
    for path in tiny.folders.rglob("*.png"):
        copy = tmp_path / "data" / path.relative_to(tiny.folders)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    root = tmp_path / "data"
    index = read_folder(root, "train")
    check_folder(index, "training images")
    (root / "train" / "red" / "more_1.png").write_bytes(b"none")
    with pytest.raises(InputError, match=rf"1 of {len(index)} training images that will not be read.*more_1\.png"):
        check_folder(index, "training images")
    config = load_config(cls_config, [f"train_data.root={root}", f"test_data.root={root}"])
    with pytest.raises(InputError, match="that will not be read"):
        train(config, work_dir=tmp_path / "run", check=True)


def test_a_watch(data, tmp_path):
    watch = Watch(data)
    watch.stop()
    assert watch.fault is None
    (tmp_path / "c.png").write_bytes(b"none")
    watch = Watch(data)
    for _ in range(500):
        if watch.fault is not None:
            break
        time.sleep(0.01)
    watch.stop()
    assert "c.png" in str(watch.fault)


def spoiled(tiny, tmp_path, split):
    """The tiny set in another folder, one picture of a split being none."""
    images = tmp_path / "images"
    images.mkdir()
    for path in tiny.images.iterdir():
        (images / path.name).write_bytes(path.read_bytes())
    content = json.loads((tiny.train if split == "train" else tiny.val).read_text())
    (images / content["images"][-1]["file_name"]).write_bytes(b"none")
    return images


def test_a_bad_validation_image_ends_a_run_before_it_begins(det_config, tiny, tmp_path):
    images = spoiled(tiny, tmp_path, "val")
    with pytest.raises(InputError, match=r"1 of 5 validation images that will not be read; the first: image"):
        train(load_config(det_config, [f"test_data.image_root={images}"]), work_dir=tmp_path / "run")
    assert not (tmp_path / "run" / "last.pth").exists()


@pytest.mark.parametrize("check", [True, False])
def test_a_bad_training_image_ends_it_early(det_config, tiny, tmp_path, check):
    images = spoiled(tiny, tmp_path, "train")
    options = [f"train_data.image_root={images}", "schedule.length=100", "schedule.milestones=()"]
    words = "training images that will not be read" if check else "does not decode"
    with pytest.raises(InputError, match=words):
        train(load_config(det_config, options), work_dir=tmp_path / "run", check=check)


def test_nothing_to_learn_from(det_config, tiny, tmp_path):
    content = json.loads(tiny.train.read_text())
    for row in content["annotations"]:
        row["iscrowd"] = 1
    (tmp_path / "crowds.json").write_text(json.dumps(content))
    number = len(content["annotations"])
    with pytest.raises(InputError, match=rf"{number} boxes, all of them crowds or difficult\n.*to learn from"):
        train(
            load_config(det_config, [f"train_data.annotation_file={tmp_path / 'crowds.json'}"]), work_dir=tmp_path / "w"
        )
