"""Where pictures come from, and what is written about them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import resdet
from resdet.api.infer import infer_files
from resdet.api.sources import Frame, frames, listed_sources
from resdet.api.writers import WRITERS, folder_name
from resdet.errors import InputError
from resdet.structures import Detections


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "shots"
    (root / "deeper").mkdir(parents=True)
    (root / ".hidden").mkdir()
    for name, colour in (("b.JPG", 10), ("a.png", 20), ("deeper/c.TIFF", 30), (".hidden/d.png", 40), (".e.png", 50)):
        Image.new("RGB", (6, 4), (colour, 0, 0)).save(root / name)
    (root / "Thumbs.db").write_bytes(b"x")
    return root


def write_video(path: Path, count: int = 5) -> None:
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (64, 48))
    for number in range(count):
        video.write(np.full((48, 64, 3), 50 * number, dtype=np.uint8))
    video.release()


def test_pictures_of_a_folder(folder):
    seen = list(frames([folder]))
    assert [Path(frame.source).name for frame in seen] == ["a.png", "b.JPG", "c.TIFF"]  # no hidden ones
    assert [frame.pixels.shape for frame in seen] == [(3, 4, 6)] * 3 and seen[0].pixels[:, 0, 0].tolist() == [20, 0, 0]
    assert [frame.name for frame in frames([str(folder / "*.JPG")])] == ["b"]
    assert [frame.name for frame in frames([str(folder / "**" / "*.TIFF"), folder / "a.png"])] == ["c", "a"]


def test_a_file_that_does_not_decode_is_an_error_in_its_place(folder):
    (folder / "b.JPG").write_bytes(b"no image")
    kinds = [type(each) for each in frames([folder])]
    assert kinds == [Frame, InputError, Frame]


def test_frames_of_a_video(tmp_path):
    write_video(tmp_path / "v.mp4")
    seen = list(frames([tmp_path / "v.mp4"]))
    assert [frame.name for frame in seen] == [f"v_{number:06d}" for number in range(5)]
    assert seen[0].pixels.shape == (3, 48, 64) and seen[0].rate == 10
    means = [float(frame.pixels.float().mean()) for frame in seen]
    assert means == pytest.approx([0, 50, 100, 150, 200], abs=8)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("none.jpg", "no such file"),
        ("https://example.org/a.jpg", "an address of the web"),
        ("*.nothing", "no such file"),
        ("987", "a camera or a stream: 987"),
        ("bad.mp4", "no frame"),
    ],
)
def test_sources_that_are_none(tmp_path, monkeypatch, source, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(InputError, match=words):
        list(frames([source]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="without images"):
        listed_sources("empty")


FRAME = Frame("x/photo.jpg", None, torch.arange(3 * 20 * 40, dtype=torch.uint8).view(3, 20, 40), 0.0)
FOUND = Detections(
    torch.tensor([[4.0, 2.0, 24.0, 12.0], [0.0, 0.0, 40.0, 20.0]]), torch.tensor([0.75, 0.5]), torch.tensor([1, 0])
)
NONE = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))


def write(name: str, out: Path) -> None:
    writer = WRITERS[name](out, ("dog", "a/cat"), (3, 7))
    writer.add(1, "photo", FRAME, FOUND)
    writer.add(2, "empty", FRAME._replace(source="empty.jpg"), NONE)
    writer.close()


def test_coco_by_hand(tmp_path):
    write("coco", tmp_path)
    content = json.loads((tmp_path / "detections.json").read_text())
    assert content["images"][0] == {"id": 1, "file_name": "x/photo.jpg", "height": 20, "width": 40}
    assert content["categories"] == [{"id": 3, "name": "dog"}, {"id": 7, "name": "a/cat"}]
    assert content["annotations"] == [
        {"image_id": 1, "category_id": 7, "bbox": [4.0, 2.0, 20.0, 10.0], "score": 0.75},
        {"image_id": 1, "category_id": 3, "bbox": [0.0, 0.0, 40.0, 20.0], "score": 0.5},
    ]
    lines = [json.loads(line) for line in (tmp_path / "detections.jsonl").read_text().splitlines()]
    assert [line["image"]["id"] for line in lines] == [1, 2] and lines[1]["annotations"] == []


def test_yolo_by_hand(tmp_path):
    write("yolo", tmp_path)
    rows = (tmp_path / "labels" / "photo.txt").read_text().splitlines()
    assert rows[0] == "1 0.350000 0.350000 0.500000 0.500000 0.750000"  # centre (14, 7), 20 x 10 of 40 x 20
    assert rows[1] == "0 0.500000 0.500000 1.000000 1.000000 0.500000"
    assert (tmp_path / "labels" / "empty.txt").read_text() == ""
    assert (tmp_path / "classes.txt").read_text() == "dog\na/cat\n"


def test_voc_by_hand(tmp_path):
    write("voc", tmp_path)
    root = ElementTree.parse(tmp_path / "annotations" / "photo.xml").getroot()
    assert root.findtext("filename") == "photo.jpg" and root.findtext("size/width") == "40"
    first = root.find("object")
    assert first.findtext("name") == "a/cat"
    assert [first.findtext(f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")] == [
        "5.00",
        "3.00",
        "24.00",
        "12.00",
    ]
    assert ElementTree.parse(tmp_path / "annotations" / "empty.xml").getroot().find("object") is None


def test_folders_of_classes(monkeypatch):
    assert [folder_name(name) for name in ("cat", "a/b: c", "..", "", "猫")] == ["cat", "a_b_ c", "_", "_", "猫"]
    monkeypatch.setattr("sys.getfilesystemencoding", lambda: "ascii")
    assert folder_name("猫 a") == "_u732b a"


def test_csv_crops_and_pictures_by_hand(tmp_path):
    for name in ("csv", "crops", "pictures"):
        write(name, tmp_path)
    rows = list(csv.DictReader((tmp_path / "detections.csv").read_text().splitlines()))
    assert rows[0] == {
        **{"file": "x/photo.jpg", "frame": "", "class": "a/cat", "score": "0.750000"},
        **{"x1": "4.00", "y1": "2.00", "x2": "24.00", "y2": "12.00"},
    }
    crop = np.asarray(Image.open(tmp_path / "crops" / "a_cat" / "photo_1.png"))
    assert np.array_equal(crop, FRAME.pixels[:, 2:12, 4:24].permute(1, 2, 0).numpy())
    assert (tmp_path / "crops" / "dog" / "photo_2.png").is_file()
    assert (tmp_path / "photo.png").is_file() and (tmp_path / "empty.png").is_file()


def test_a_folder_with_a_bad_file_is_done_to_its_end(trained, tiny, tmp_path, capsys):
    from resdet import cli

    shots = tmp_path / "shots"
    shots.mkdir()
    for path in sorted(tiny.images.iterdir())[:3]:
        (shots / path.name).write_bytes(path.read_bytes())
    (shots / "a_bad.png").write_bytes(b"none")
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as caught:
        cli.infer([str(trained / "last.pth"), str(shots), "--out", str(out), "--save", "coco", "csv"])
    assert "4 images\n  found:  1 that do not decode: image" in str(caught.value.code)
    assert "a_bad.png" in capsys.readouterr().err
    assert len(json.loads((out / "detections.json").read_text())["images"]) == 3
    assert (out / "detections.csv").is_file() and not list(out.glob("*.png"))


def test_a_video_is_drawn_and_streamed(trained, tmp_path):
    write_video(tmp_path / "v.mp4", count=3)
    seen = infer_files(None, trained / "last.pth", [tmp_path / "v.mp4"], out=tmp_path / "out", device="cpu")
    assert seen.images == 3 and seen.unreadable == []
    content = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert content["images"][2]["file_name"].endswith("v.mp4#2")
    capture = cv2.VideoCapture(str(tmp_path / "out" / "v.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 3
    detector = resdet.Detector(trained / "last.pth", device="cpu")
    streamed = list(detector.stream(tmp_path / "v.mp4"))
    assert len(streamed) == 3
    for pixels, found in streamed:
        assert torch.equal(found.boxes, detector(pixels).boxes)
