"""What runs an exported net gets our images and gives detections. No time is asserted."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from resdet import cli
from resdet.benchmarks import runtimes
from resdet.benchmarks.runtimes import RUNTIMES, check, detect
from resdet.benchmarks.timing import Side, agreement, check_side, side_job
from resdet.deploy.export import NAMES
from resdet.errors import InputError

SIDE = Side(True, "onnxruntime", "r50_fpn", "infer", (64, 96), 2, keep_memory=False, threads=1)


def test_images_are_padded_and_empty_rows_left_out():
    asked = {}

    def run(given):
        asked.update(given)
        boxes = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
        scores = np.array([[0.9, 0.8, 0], [0, 0, 0]], np.float32)
        return boxes, scores, np.array([[4, 2, -1], [-1, -1, -1]])

    images = [torch.full((3, 40, 64), 7, dtype=torch.uint8), torch.full((3, 40, 64), 9, dtype=torch.uint8)]
    first, second = detect(run, images)
    assert asked["images"].shape == (2, 3, 64, 64) and asked["sizes"].tolist() == [[40, 64]] * 2
    assert asked["images"][0, :, :40].min() == 7 and asked["images"][1, 2, 39, 63] == 9
    assert asked["images"][:, :, 40:].max() == 0
    assert first.boxes.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]] and first.labels.tolist() == [4, 2]
    assert first.scores.tolist() == pytest.approx([0.9, 0.8])
    assert second.boxes.shape == (0, 4)


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_file_in_each_runtime(name, tmp_path):
    """The mean of the images as score, their sizes as labels."""
    pytest.importorskip(name)
    onnx = pytest.importorskip("onnx")
    kind, make = onnx.TensorProto, onnx.helper
    nodes = [
        make.make_node("ReduceMean", ["images"], ["scores"], keepdims=0),
        make.make_node("Identity", ["sizes"], ["labels"]),
        make.make_node("Relu", ["images"], ["boxes"]),
    ]
    given = [make.make_tensor_value_info("images", kind.FLOAT, [1, 3, 2, 2])]
    given.append(make.make_tensor_value_info("sizes", kind.INT64, [1, 2]))
    shapes = {"boxes": (kind.FLOAT, [1, 3, 2, 2]), "scores": (kind.FLOAT, []), "labels": (kind.INT64, [1, 2])}
    graph = make.make_graph(nodes, "g", given, [make.make_tensor_value_info(n, *shapes[n]) for n in NAMES])
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "net.onnx")
    run = RUNTIMES[name](str(tmp_path / "net.onnx"), 1)
    images = np.array([-3, 1, 2, 4] * 3, np.float32).reshape(1, 3, 2, 2)
    sizes = np.array([[5, 6]])
    boxes, scores, labels = run({"images": images, "sizes": sizes})
    run({"images": images + 1, "sizes": sizes + 1})  # writes over nothing that was given
    assert boxes[0, 0].tolist() == [[0, 1], [2, 4]] and float(scores) == 1 and labels.tolist() == [[5, 6]]


def test_what_a_runtime_cannot_do(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check("onnxruntime", work="infer", amp="off")
    check("detectron2", work="train", amp="bf16")
    with pytest.raises(InputError, match=r"--beside openvino\n.*train\n.*infer alone"):
        check("openvino", work="train", amp="off")
    with pytest.raises(InputError, match="float32 on both sides"):
        check("onnxruntime", work="infer", amp="bf16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(InputError, match="CUDA_VISIBLE_DEVICES="):
        check("onnxruntime", work="infer", amp="off")


@pytest.mark.parametrize("name", RUNTIMES)
def test_one_that_is_not_installed(name, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=rf"--beside {name}\n(.|\n)*resdet\[peers\]"):
        check_side(SIDE._replace(beside=name))
    with pytest.raises(SystemExit, match=f"error: --beside {name}\n"):
        cli.benchmark(["infer", "--beside", "torchvision", name])
    assert capsys.readouterr().out == ""  # told before anything is measured


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNTIMES)
def test_both_find_the_same(name, monkeypatch):
    pytest.importorskip(name)
    monkeypatch.setattr(runtimes, "ProcessPoolExecutor", Here)
    sides = SIDE._replace(beside=name), SIDE._replace(beside=name, ours=False)
    answers = []
    for side in sides:
        job = side_job(side)
        assert job.run() > 0
        answers.append(job.answer())
    assert agreement(*answers) > 0.98 and len(answers[0][0][0]) > 5


class Here:
    """In place of a pool: what is asked is done at once."""

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def submit(self, work, *arguments):
        work(*arguments)
        return self

    def result(self):
        return None
