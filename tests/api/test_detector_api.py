from __future__ import annotations

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

import resdet
from resdet import cli
from resdet.api import infer_files, to_tensor
from resdet.datasets.coco import read_coco
from resdet.datasets.detection import DetectionDataset
from resdet.engine.config import load_config
from resdet.engine.experiment import load_experiment
from resdet.errors import InputError
from resdet.settings import arguments_of

LOW = ["model.score_threshold=0.05"]


@pytest.fixture(scope="module")
def detector(det_config, trained):
    return resdet.Detector(det_config, trained / "last.pth", device="cpu", options=LOW)


@pytest.fixture(scope="module")
def path(tiny):
    return sorted(tiny.images.iterdir())[0]


def assert_same(a, b, **tolerance):
    for left, right in zip(a, b, strict=True):
        torch.testing.assert_close(left, right, **tolerance)


def test_importing_the_package_costs_nothing():
    code = "import resdet, sys; assert 'torch' not in sys.modules; resdet.BACKBONES; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="Detectr"):
        resdet.Detectr  # noqa: B018


def test_every_kind_of_picture_gives_the_same(detector, path):
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    array = np.asarray(picture)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    first = detector(path)
    assert len(first.boxes) > 0
    for same in (str(path), array, array[:, ::1], picture, tensor):
        assert_same(detector(same), first)


def test_the_answer(detector, path):
    boxes, scores, labels = detector(path)
    with Image.open(path) as picture:
        width, height = picture.size
    assert boxes.shape == (len(scores), 4)
    assert (boxes[:, :2] >= 0).all() and (boxes[:, :2] < boxes[:, 2:]).all()
    assert (boxes[:, 2:] <= torch.tensor([width, height])).all()
    assert (scores.diff() <= 0).all() and ((scores >= 0.05) & (scores <= 1)).all()
    assert labels.dtype == torch.int64 and set(labels.tolist()) <= {0, 1, 2}
    assert detector.classes == ("blue", "green", "red")
    assert not boxes.requires_grad and not detector.net.training


def test_lists(detector, tiny):
    paths = sorted(tiny.images.iterdir())[:3]  # of three sizes
    together = detector(paths)
    assert [type(answer) for answer in together] == [type(detector(paths[0]))] * 3
    for path, answer in zip(paths, together, strict=True):
        (alone,) = detector((path,))
        assert_same(alone, detector(path))
        assert_same(answer, alone)  # whatever it comes with
    assert detector([]) == []


def test_it_is_the_net_that_is_evaluated(det_config, trained, tiny, detector):
    experiment = load_experiment(load_config(det_config, LOW), trained / "last.pth")
    image, target = DetectionDataset(read_coco(tiny.val, tiny.images))[0]
    experiment.adapter.eval()
    ((answer, _),) = experiment.adapter.val_step(([image], [target]))
    assert_same([part.cpu() for part in answer], detector(image))


def test_looking_more_than_once(det_config, trained, path):
    last = trained / "last.pth"
    test = {"refine": 1, "vote": 0.5, "scales": (48, 64), "flip": True, "ensemble": (str(last),)}
    keyed = resdet.Detector(det_config, last, device="cpu", score_threshold=0.05, test=test)
    options = ["test.refine=1", "test.vote=0.5", "test.scales=(48, 64)", "test.flip=True"]
    said = resdet.Detector(
        det_config, last, device="cpu", score_threshold=0.05, options=[*options, f"test.ensemble=({str(last)!r},)"]
    )
    assert len(keyed.net.nets) == 2 and keyed.net.suppression.score_threshold == 0.05
    assert_same(keyed(path), said(path), rtol=0, atol=0)
    assert keyed(path).boxes.shape != resdet.Detector(det_config, last, device="cpu")(path).boxes.shape
    with pytest.raises(InputError, match="unknown key 'refne'"):
        resdet.Detector(det_config, last, test={"refne": 1})


def test_grey_and_rotated_pictures(detector, tmp_path):
    draw = np.random.default_rng(0)
    grey = Image.fromarray(draw.integers(0, 255, size=(40, 60), dtype=np.uint8))
    assert to_tensor(grey).shape == (3, 40, 60)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter
    grey.save(tmp_path / "turned.jpg", exif=exif)
    assert to_tensor(tmp_path / "turned.jpg").shape == (3, 60, 40)
    with Image.open(tmp_path / "turned.jpg") as picture:
        assert to_tensor(picture).shape == (3, 60, 40)
    detector(tmp_path / "turned.jpg")


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (np.full((4, 4, 3), 2.0), "values from 2.0 to 2.0"),
        (np.zeros((4, 4), dtype=np.uint8), "uint8 of shape (4, 4)"),
        (np.zeros((3, 4, 4), dtype=np.uint8), "uint8 of shape (3, 4, 4)"),
        (7, "int"),
        (None, "NoneType"),
        (torch.zeros(3, 4, 4), "torch.float32 of shape (3, 4, 4)"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), "shape (4, 4, 3)"),
    ],
)
def test_what_is_no_picture(detector, picture, words):
    with pytest.raises(InputError) as caught:
        detector(picture)
    assert words in str(caught.value)
    assert "uint8 RGB" in str(caught.value)


def test_files_that_are_no_picture(detector, tmp_path):
    with pytest.raises(InputError, match=r"gone\.png"):
        detector(tmp_path / "gone.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InputError, match=r"text\.png"):
        detector(str(tmp_path / "text.png"))


def test_what_does_not_fit(det_config, cls_config, trained):
    with pytest.raises(InputError, match="a detection config"):
        resdet.Detector(cls_config, trained / "last.pth")
    with pytest.raises(InputError, match=r"model\.num_classes\n.*5\n.*3"):
        resdet.Detector(det_config, trained / "last.pth", options=["model.num_classes=5"])
    with pytest.raises(InputError, match=r"trained with model\.head_width=32"):
        resdet.Detector(det_config, trained / "last.pth", options=["model.head_width=8"])


def test_tiles_by_every_door(det_config, trained, tiny, tmp_path, write_config):
    first, second = sorted(tiny.images.iterdir())[:2]
    pair = [Image.open(path).convert("RGB") for path in (first, second)]
    wide = Image.new("RGB", (160, 100))
    wide.paste(pair[0], (0, 0))
    wide.paste(pair[1], (80, 20))
    wide.save(tmp_path / "wide.png")
    last, how = trained / "last.pth", {"device": "cpu", "score_threshold": 0.05}
    expected = resdet.Detector(last, test={"tiles": 64, "tile_overlap": 0.3}, **how)(tmp_path / "wide.png")
    assert len(expected.boxes) != len(resdet.Detector(last, **how)(tmp_path / "wide.png").boxes)
    config = write_config(("run = dict(", "test = dict(tiles=64, tile_overlap=0.3)\nrun = dict("))
    cli.infer([*map(str, (config, last, tmp_path / "wide.png", "--out", tmp_path / "a")), "--score-threshold", "0.05"])
    words = ["--score-threshold", "0.05", "--tiles", "64", "--cfg-options", "test.tile_overlap=0.3"]
    cli.infer([*map(str, (last, tmp_path / "wide.png", "--out", tmp_path / "b")), *words])
    for folder in ("a", "b"):
        rows = json.loads((tmp_path / folder / "detections.json").read_text())["annotations"]
        torch.testing.assert_close(torch.tensor([row["score"] for row in rows]), expected.scores)
    with pytest.raises(SystemExit, match=r"test\.tiles\n  found:  32\n  needed: a number in \[64, inf\]"):
        cli.infer([str(last), str(tmp_path / "wide.png"), "--tiles", "32", "--out", str(tmp_path / "c")])


def test_files_and_folders(det_config, trained, tiny, tmp_path):
    images = sorted(tiny.images.iterdir())
    how = {"score_threshold": 0.05, "device": "cpu", "batch_size": 2}
    assert infer_files(det_config, trained / "last.pth", [images[0], images[1], images[2]], out=tmp_path, **how)[0] == 3
    written = json.loads((tmp_path / "detections.json").read_text())
    assert [(row["id"], row["file_name"]) for row in written["images"]] == [
        (number, str(path)) for number, path in enumerate(images[:3], 1)
    ]
    assert {row["image_id"] for row in written["annotations"]} <= {1, 2, 3}
    assert {row["category_id"] for row in written["annotations"]} <= {2, 5, 9}  # of the training file
    detector = resdet.Detector(det_config, trained / "last.pth", device="cpu", options=LOW)
    third = [row for row in written["annotations"] if row["image_id"] == 3]
    boxes = detector(images[2]).boxes  # alone in its batch here and there
    expected = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)
    torch.testing.assert_close(torch.tensor([row["bbox"] for row in third]), expected)
    assert sorted(p.name for p in tmp_path.glob("*.png")) == [f"{path.stem}.png" for path in images[:3]]


def test_a_high_threshold_leaves_pictures_without_boxes(det_config, trained, tiny, tmp_path):
    image = sorted(tiny.images.iterdir())[0]
    assert (
        infer_files(det_config, trained / "last.pth", [image], out=tmp_path, score_threshold=1.0, device="cpu")[0] == 1
    )
    assert json.loads((tmp_path / "detections.json").read_text())["annotations"] == []
    assert (tmp_path / f"{image.stem}.png").is_file()


def test_pictures_of_an_earlier_call_are_no_input(det_config, trained, tiny, tmp_path):
    (tmp_path / "photo.png").write_bytes(sorted(tiny.images.iterdir())[0].read_bytes())
    for _ in range(2):
        assert infer_files(det_config, trained / "last.pth", [tmp_path], out=tmp_path / "seen", device="cpu")[0] == 1


def test_threads(det_config, trained, tiny):
    # Detectors are built in several threads at once, and one is used from several.
    paths, barrier = sorted(tiny.images.iterdir()), threading.Barrier(8)

    def build(number):
        barrier.wait()
        parts = (trained / "last.pth",) if number % 2 else (det_config, trained / "last.pth")
        return resdet.Detector(*parts, device="cpu", options=LOW)

    with ThreadPoolExecutor(8) as pool:
        arguments_of.cache_clear()
        built = list(pool.map(build, range(8)))
        alone = [built[0](path) for path in paths]
        for each in built:
            assert_same(each(paths[0]), alone[0])
        turns = [list(range(start, len(paths))) + list(range(start)) for start in range(8)]
        seen = list(pool.map(lambda turn: [built[0](paths[row]) for row in turn], turns))
    for turn, answers in zip(turns, seen, strict=True):
        for row, answer in zip(turn, answers, strict=True):
            assert_same(answer, alone[row])
