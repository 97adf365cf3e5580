"""Detectors in service answer as they do alone, one picture at a time."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from lively import META, lively_net, pictures
from PIL import Image

import resdet
from resdet.deploy.serving import LARGEST_SIDE, MOST_ROUNDS, Service, short_names
from resdet.errors import InputError


@pytest.fixture(scope="module")
def service(trained):
    return Service([trained / "last.pth"], device="cpu")


@pytest.fixture
def pixels(tiny):
    with Image.open(sorted(tiny.images.iterdir())[0]) as image:
        return np.array(image)


@pytest.mark.parametrize(
    "test",
    [
        {"score_threshold": 0.0},
        {"score_threshold": 0.01, "refine": 1, "vote": 0.5},
        {"score_threshold": 0.01, "flip": True, "sizes": (80,), "merge": "wbf"},
        {"score_threshold": 0.01, "scales": (48, 64, 96), "nms": "gaussian", "max_per_image": 7},
    ],
)
def test_it_answers_as_a_detector_of_these_settings(service, trained, pixels, test):
    answer = service.detect(pixels, test=test)
    wanted = resdet.Detector(trained / "last.pth", device="cpu", test=test)(pixels)
    assert len(wanted.boxes) > 3
    for ours, theirs in zip((answer.boxes, answer.scores, answer.labels), wanted, strict=True):
        assert np.array_equal(ours, theirs.numpy())
    assert answer.names == tuple(service.classes[label] for label in answer.labels)
    record = answer.record()
    assert record["boxes"] == wanted.boxes.tolist() and record["scores"] == wanted.scores.tolist()
    assert record["size"] == {"height": pixels.shape[0], "width": pixels.shape[1]}


def test_a_request_leaves_no_trace(service, pixels):
    first = service.detect(pixels, test={"score_threshold": 0.0})
    service.detect(pixels, test={"flip": True, "max_per_image": 1})
    again = service.detect(pixels, test={"score_threshold": 0.0})
    assert np.array_equal(first.boxes, again.boxes)


def test_its_own_threshold_where_nothing_is_said(service, trained, pixels):
    assert service.settings().score_threshold == 0.5
    own = Service([trained / "last.pth"], device="cpu", options=["test.score_threshold=0.125"])
    assert own.settings().score_threshold == 0.125
    answer, wanted = own.detect(pixels), resdet.Detector(trained / "last.pth", device="cpu", score_threshold=0.125)
    assert np.array_equal(answer.scores, wanted(pixels).scores.numpy())


def test_some_classes(service, pixels):
    everything = service.detect(pixels, test={"score_threshold": 0.0})
    some = service.detect(pixels, test={"score_threshold": 0.0}, only=["red", "blue"])
    kept = [name in ("red", "blue") for name in everything.names]
    assert 0 < sum(kept) < len(kept)
    assert np.array_equal(some.boxes, everything.boxes[kept])
    assert set(some.names) == {"red", "blue"} and some.labels.tolist() == everything.labels[kept].tolist()
    assert service.detect(pixels, test={"score_threshold": 1.0}, only=["red"]).record()["boxes"] == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model": "lst"}, ["model", "'lst'", "'last'"]),
        ({"only": ["read"]}, ["class", "'read'", "'red'"]),
        ({"test": {"flop": True}}, ["'flop'", "'flip'"]),
        ({"test": {"ensemble": ("/etc/passwd",)}}, ["'ensemble'"]),
        ({"test": {"vote": 2.0}}, ["test.vote", "2.0"]),
        ({"test": {"sizes": (LARGEST_SIDE + 1,)}}, ["test.sizes", str(LARGEST_SIDE)]),
        ({"test": {"scales": tuple(range(100, 109))}}, ["test.scales", "at most 8"]),
        ({"test": {"refine": MOST_ROUNDS + 1}}, ["test.refine", str(MOST_ROUNDS)]),
    ],
)
def test_what_it_does_not_do(service, pixels, given, words):
    with pytest.raises(InputError) as raised:
        service.detect(pixels, **given)
    assert all(word in str(raised.value) for word in words)


def test_pictures(service, tiny, pixels):
    path = sorted(tiny.images.iterdir())[0]
    assert np.array_equal(service.read(path), pixels)
    assert np.array_equal(service.read(path.read_bytes()), pixels)
    with pytest.raises(InputError, match=r"(?s)^photo\.jpg\n.*does not decode") as raised:
        service.read(path.read_bytes()[:100], name="photo.jpg")
    assert "/upload" not in str(raised.value)


def test_names_are_short_and_differ(tmp_path):
    assert list(short_names(["runs/a/best.pth", "b.onnx"])) == ["best", "b"]
    assert list(short_names(["runs/a/best.pth", "runs/b/best.pth"])) == ["a/best", "b/best"]
    assert list(short_names(["x/a/best.pth", "y/a/best.pth"])) == ["a/best (1)", "a/best (2)"]


def test_one_picture_at_a_time(service, pixels, monkeypatch):
    inside, most = [0], [0]

    class Slow:
        classes = ("red",)

        def __call__(self, _):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.02)
            inside[0] -= 1
            return np.zeros((0, 4)), np.zeros(0), np.zeros(0, int)

    monkeypatch.setattr("resdet.deploy.serving.looking", lambda *_: Slow())
    threads = [threading.Thread(target=service.detect, args=(pixels,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def test_an_exported_detector(tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason='ONNX needs pip install "resdet[export]"')
    from resdet.deploy.export import Frame, write_predictor
    from resdet.inference.predictor import Predictor

    path = write_predictor(Predictor([lively_net("c4")]), META, tmp_path / "m.onnx", frame=Frame((96, 160)))
    picture, service = pictures(1)[0].permute(1, 2, 0).numpy(), Service([path])
    assert service.settings().score_threshold == 0.5
    answer = service.detect(picture, test={"score_threshold": 0.3, "flip": False})
    wanted = resdet.OnnxDetector(path, score_threshold=0.3)(picture)
    assert len(answer.boxes) > 3 and np.array_equal(answer.scores, wanted.scores)
    for test, words in (({"flip": True}, "looks once"), ({"score_threshold": 0.01}, "0.05, which the file was made")):
        with pytest.raises(InputError, match=words):
            service.detect(picture, test=test)
    with pytest.raises(InputError, match="a checkpoint"):
        Service([path], options=["test.refine=1"])
