"""``skip_unreadable`` in every form of data, by configs and in the two tools that measure."""

import json
import logging
import shutil

import numpy as np
import pytest
from PIL import Image

from resdet.cli.testing import evaluate as tool
from resdet.datasets import readable
from resdet.datasets.readable import without_unreadable
from resdet.datasets.sources import test_folder as read_test_folder
from resdet.engine.calls import Call
from resdet.engine.config import load_config
from resdet.engine.train import train
from resdet.errors import InputError

SIDE = 12


@pytest.fixture
def pictures(tmp_path):
    """Six pictures of noise: c is half a JPEG that is closed, d is none, f is missing."""
    folder, draw = tmp_path / "images", np.random.default_rng(0)
    folder.mkdir()
    for name in "abcde":
        Image.fromarray(draw.integers(0, 256, (60, SIDE, 3), dtype=np.uint8)).save(folder / f"{name}.jpg", quality=95)
    half = (folder / "c.jpg").read_bytes()
    (folder / "c.jpg").write_bytes(half[: len(half) * 6 // 10] + b"\xff\xd9")
    (folder / "d.jpg").write_bytes(b"none")
    return folder


def write_coco(folder, *, sizes=True):
    hw = {"height": 60, "width": SIDE} if sizes else {}
    images = [{"id": n, "file_name": f"{name}.jpg", **hw} for n, name in enumerate("abcdef", 1)]
    rows = [{"id": n, "image_id": n, "category_id": 1, "bbox": [1, 1, 4 + n, 4]} for n in range(1, 7)]
    path = folder.parent / "ann.json"
    path.write_text(json.dumps({"images": images, "annotations": rows, "categories": [{"id": 1, "name": "cat"}]}))
    return {"type": "resdet.datasets.coco.read_coco", "annotation_file": str(path), "image_root": str(folder)}


def write_voc(folder):
    root = folder.parent / "voc"
    for part in ("Annotations", "ImageSets/Main"):
        (root / part).mkdir(parents=True)
    shutil.copytree(folder, root / "JPEGImages")
    for n, name in enumerate("abcdef", 1):
        box = f"<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>{5 + n}</xmax><ymax>5</ymax></bndbox>"
        size = f"<size><width>{SIDE}</width><height>60</height><depth>3</depth></size>"
        text = f"<annotation>{size}<object><name>cat</name>{box}</object></annotation>"
        (root / "Annotations" / f"{name}.xml").write_text(text)
    (root / "ImageSets" / "Main" / "train.txt").write_text("\n".join("abcdef"))
    return {"type": "resdet.datasets.voc.read_voc", "splits": [(str(root), "train")]}


def write_yolo(folder):
    (folder.parent / "labels").mkdir()
    for n, name in enumerate("abcde", 1):
        w, h = (4 + n) / SIDE, 4 / 60
        (folder.parent / "labels" / f"{name}.txt").write_text(f"0 {1 / SIDE + w / 2} {1 / 60 + h / 2} {w} {h}")
    (folder.parent / "data.yaml").write_text(
        json.dumps({"path": str(folder.parent), "train": "images", "names": ["cat"]})
    )
    return {"type": "resdet.datasets.yolo.read_yolo", "data": str(folder.parent / "data.yaml")}


def read(given, **more):
    return Call.read({**given, **more}, where="here", section="train_data")()


@pytest.mark.parametrize("write", [write_coco, lambda f: write_coco(f, sizes=False), write_voc, write_yolo])
def test_every_form(pictures, write, caplog):
    given = write(pictures)
    with pytest.raises(InputError):  # a file is missing, or of unknown size
        read(given)
    data = read(given, skip_unreadable=True)
    assert [name[-5:] for name in data.files] == ["a.jpg", "b.jpg", "e.jpg"]
    left_out = 2 if write is write_yolo else 3  # YOLO lists the files that are there
    assert data.left_out == left_out and len(data) == 3 and data.hw.tolist() == [[60, SIDE]] * 3
    np.testing.assert_allclose(data.boxes, [[1, 1, 5 + n, 5] for n in (1, 2, 5)], rtol=1e-6)
    (told,) = [line for line in caplog.messages if "skip_unreadable" in line]
    assert f"{left_out} of {3 + left_out} images cannot be read" in told
    assert "c.jpg" in told and "d.jpg" in told and ("f.jpg" in told) == (left_out == 3)


def test_the_first_five_are_named(pictures, caplog):
    given = write_coco(pictures)
    for name in "abcd":
        (pictures / f"{name}.jpg").write_bytes(b"none")
    Image.new("RGB", (9, 9)).save(pictures / "f.jpg")  # of another size
    assert len(read(given, skip_unreadable=True)) == 1
    told = caplog.messages[-1]
    assert "5 of 6 images" in told and told.count(".jpg") == 5
    (pictures / "e.jpg").unlink()
    with pytest.raises(InputError, match="none of 6 images can be read"):
        read(given, skip_unreadable=True)


def test_the_answer_is_kept_until_a_file_changes(pictures, monkeypatch):
    given, looked = write_coco(pictures), []
    inner = readable.faults
    monkeypatch.setattr(readable, "faults", lambda *args, **kw: looked.append(1) or inner(*args, **kw))
    assert len(read(given, skip_unreadable=True)) == len(read(given, skip_unreadable=True)) == 3
    assert len(looked) == 1
    shutil.copy(pictures / "a.jpg", pictures / "d.jpg")
    assert len(read(given, skip_unreadable=True)) == 4 and len(looked) == 2


def test_folders_of_classes(pictures, tmp_path, caplog):
    for split in ("train", "val"):
        for label, names in {"x": "ac", "y": "bde"}.items():
            (tmp_path / "set" / split / label).mkdir(parents=True)
            for name in names:
                shutil.copy(pictures / f"{name}.jpg", tmp_path / "set" / split / label)
    data = without_unreadable(read_test_folder(root=str(tmp_path / "set"), crop=8, shorter_side=8))
    assert list(data.index.files) == ["x/a.jpg", "y/b.jpg", "y/e.jpg"] and data.index.labels.tolist() == [0, 1, 1]
    assert data.left_out == 2 and len(data) == 3 and "2 of 5 images" in caplog.text
    (tmp_path / "set" / "val" / "x" / "a.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="no picture that can be read of 1 classes: x"):
        without_unreadable(read_test_folder(root=str(tmp_path / "set"), crop=8, shorter_side=8))


def test_data_without_files_have_no_such_setting():
    with pytest.raises(InputError, match=r"skip_unreadable=True for list"):
        without_unreadable([1])


def test_a_sound_set_stays_as_it_is(tiny):
    given = {"type": "resdet.datasets.coco.read_coco", "annotation_file": str(tiny.val), "image_root": str(tiny.images)}
    plain, skipped = read(given), read(given, skip_unreadable=True)
    assert skipped.left_out == 0 and list(skipped.files) == list(plain.files)
    assert "skip_unreadable" not in Call.read(given, where="", section="test_data").describe()
    assert Call.read({**given, "skip_unreadable": True}, where="", section="test_data").describe()["skip_unreadable"]


def test_a_run_and_its_evaluation(det_config, tiny, tmp_path, caplog, capsys):
    images = tmp_path / "images"
    shutil.copytree(tiny.images, images)
    for split in (tiny.train, tiny.val):
        rows = json.loads(split.read_text())["images"]
        (images / rows[-1]["file_name"]).write_bytes(b"none")
    options = [f"{s}_data.{o}" for s in ("train", "test") for o in (f"image_root={images}", "skip_unreadable=true")]
    config = load_config(det_config, options)
    caplog.set_level(logging.WARNING, "resdet")
    train(config, work_dir=tmp_path / "run")
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["images_left_out"] == 1
    assert "1 of 8 images cannot be read" in caplog.text and "1 of 5 images cannot be read" in caplog.text
    checkpoint = str(tmp_path / "run" / "last.pth")
    arguments = [str(det_config), checkpoint, "--out", str(tmp_path / "eval.json"), "--cfg-options", *options]
    tool(arguments)
    assert "These figures leave out 1 images that cannot be read" in capsys.readouterr().out
    assert json.loads((tmp_path / "eval.json").read_text())["images_left_out"] == 1
    with pytest.raises(SystemExit, match=r"1 of 5 test images that will not be read[\s\S]*skip_unreadable=True"):
        tool([str(det_config), checkpoint, "--cfg-options", f"test_data.image_root={images}"])
