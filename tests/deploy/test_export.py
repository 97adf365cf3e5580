"""Exported detectors find what the nets find."""

from __future__ import annotations

import json
import math

import pytest
import torch
from lively import META, lively_net, pictures
from torch.testing import assert_close

from resdet import cli
from resdet.deploy import export
from resdet.deploy.export import Frame, export_detector, write_predictor
from resdet.deploy.graph import DetectionGraph, grid, pool, survivors
from resdet.detection.anchors import Anchors
from resdet.errors import InputError
from resdet.inference.predictor import Predictor
from resdet.inference.settings import TestSettings

onnx = pytest.importorskip("onnx", reason='ONNX needs pip install "resdet[export]"')
pytest.importorskip("onnxscript", reason='ONNX needs pip install "resdet[export]"')
pytest.importorskip("onnxruntime", reason='ONNX needs pip install "resdet[export]"')

from resdet.deploy.onnx_detector import OnnxDetector  # noqa: E402
from resdet.deploy.quantize import KEPT  # noqa: E402


def check_same(net, detector, images):
    """As many detections of each image, boxes within 0.05 px, scores within 1e-4."""
    wanted = net.predict(images)
    assert all(len(each.boxes) > 10 for each in wanted)
    for theirs, ours in zip(wanted, detector(images), strict=True):
        assert len(theirs.boxes) == len(ours.boxes)
        assert_close(torch.from_numpy(ours.boxes), theirs.boxes, atol=0.05, rtol=0)
        assert_close(torch.from_numpy(ours.scores), theirs.scores, atol=1e-4, rtol=0)
        assert ours.labels.tolist() == theirs.labels.tolist()


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    """A pyramid with context, and its file for images of any size."""
    net = lively_net("fpn_context")
    path = tmp_path_factory.mktemp("context") / "model.onnx"
    return net, write_predictor(Predictor([net]), META, path)


def test_any_size(context):
    net, path = context
    detector = OnnxDetector(path, threads=1)
    assert (detector.classes, detector.category_ids) == (("cat", "dog", "owl"), (2, 5, 9))
    check_same(net, detector, [*pictures(2), *pictures(1, (150, 90)), *pictures(1, (64, 200))])
    model = onnx.load(path)
    axes = [axis.dim_param or axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim]
    assert axes == [1, 3, "height", "width"]
    assert [(o.domain, o.version) for o in model.opset_import] == [("", export.OPSET)]
    assert [value.name for value in model.graph.output] == ["boxes", "scores", "labels"]


@pytest.mark.parametrize(
    ("kind", "frame", "settings"),
    [
        ("c4", Frame(any_batch=True), {}),
        ("c4_align", Frame((96, 160)), {"antialias": True, "rounding": "detectron2"}),
        ("vgg", Frame(), {}),
        ("fpn", Frame((96, 160)), {}),
    ],
)
def test_each_kind_of_net(tmp_path, kind, frame, settings):
    net = lively_net(kind, **settings)
    path = write_predictor(Predictor([net]), META, tmp_path / "model.onnx", frame=frame)
    images = pictures(2) if frame.size else [*pictures(2), *pictures(1, (60, 41))]
    check_same(net, OnnxDetector(path, threads=1), images)


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")  # torch 2.6 opening its own file
@pytest.mark.filterwarnings("ignore:Node .* does not reference an nn.Module:UserWarning")  # likewise
def test_a_program_of_torch_export(tmp_path):
    net = lively_net("c4")
    predictor = Predictor([net], TestSettings(class_agnostic_nms=True, score_threshold=0.3, nms_iou=0.4))
    path = write_predictor(predictor, META, tmp_path / "model.pt2")
    extra = {"resdet.json": ""}
    program = torch.export.load(path, extra_files=extra).module()
    assert json.loads(extra["resdet.json"])["classes"] == list(META["classes"])
    for hw in ((90, 150), (150, 90)):
        image = pictures(1, hw)[0]
        batch = net.preprocess([image])
        raw = batch.pixels * net.preprocess.std + net.preprocess.mean
        with torch.no_grad():
            boxes, scores, labels = program(raw.contiguous(), torch.tensor(batch.input_hw))
        (wanted,) = predictor.predict([image])
        many = len(wanted.boxes)
        assert many > 3 and int((labels >= 0).sum()) == many
        assert_close(scores[0, :many], wanted.scores, atol=1e-4, rtol=0)
        factors = torch.tensor([s / i for s, i in zip(hw[::-1], batch.input_hw[0][::-1], strict=True)] * 2)
        apart = torch.cdist(boxes[0, :many] * factors, wanted.boxes, p=math.inf)
        assert apart.min(0).values.max() < 0.05 and apart.min(1).values.max() < 0.05  # equal scores in any order
        assert not scores[0, many:].any() and not boxes[0, many:].any()


def test_padding_does_not_matter():
    net = lively_net("fpn")
    graph = DetectionGraph(net, Predictor([net]).suppression, survivors)
    images, sizes = torch.rand(1, 3, 96, 160) * 255, torch.tensor([[90, 130]])
    with torch.no_grad():
        before = graph(images, sizes)
        images[:, :, 90:] = 7.0
        images[..., 130:] = 250.0
        for a, b in zip(before, graph(images, sizes), strict=True):
            assert torch.equal(a, b)


def test_survivors_by_hand():
    # IoU of the first two: 8 * 10 / (100 + 100 - 80) = 2/3. The third touches nobody, the fourth scores too little.
    row = torch.tensor([[0.0, 0, 10, 10], [2, 0, 12, 10], [50, 50, 60, 60], [80, 80, 90, 90]])
    boxes, scores = torch.stack([row, row]), torch.tensor([[0.9, 0.8, 0.7, 0.1], [0.8, 0.9, 0.7, 0.6]])
    assert survivors(boxes, scores, 0.6, 0.1).tolist() == [[True, False, True, False], [False, True, True, True]]
    assert survivors(boxes, scores, 0.7, 0.1).tolist() == [[True, True, True, False], [True, True, True, True]]
    assert not survivors(boxes, scores, 0.7, 1.0).any()  # nobody


@pytest.mark.parametrize("inferred", [False, True])
def test_anchors_are_those_of_the_net(inferred):
    anchors = Anchors([(16,), (32,)], (16, 64), inferred_strides=inferred)
    maps = [torch.zeros(1, 4, 6, 10), torch.zeros(1, 4, 2, 3)]
    for ours, theirs in zip(grid(anchors, maps), anchors(maps), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", ["c4", "c4_align", "fpn"])
def test_pooling_is_that_of_the_net(kind):
    pooling = lively_net(kind).roi_head.pooling
    maps = [torch.rand(2, 4, 96 // s, 160 // s) for s in pooling.strides]
    boxes = torch.tensor([[0.0, 0, 150, 90], [3, 4, 20, 30], [0, 0, 0, 0], [70, 10, 159, 60]])
    images = torch.tensor([1, 0, 0, 1])
    assert_close(pool(pooling, maps, boxes, images), pooling(maps, boxes, images), atol=1e-5, rtol=1e-5)


def test_the_command_and_integers(trained, tiny, tmp_path, capsys):
    out, small = tmp_path / "model.onnx", tmp_path / "model.int8.onnx"
    flags = ["--size", "64x96", "--int8", str(tiny.images), "--images", "4", "--threads", "1"]
    options = ["--annotations", str(tiny.val), "--score-threshold", "0.0", "--cfg-options", "test.winograd=True"]
    cli.export([str(trained / "last.pth"), str(out), *flags, *options])
    said = capsys.readouterr().out
    assert all(
        word in said for word in (str(small), "4 images", "ms an image, median", "AP50", f"OnnxDetector('{out}')")
    )
    image = sorted(tiny.images.iterdir())[0]
    assert len(OnnxDetector(small)(image).boxes) > 10  # of a net of six steps
    assert small.stat().st_size < out.stat().st_size / 3
    model = onnx.load(small)
    made = {name: node.op_type for node in model.graph.node for name in node.output}
    weights = {}
    for node in (node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")):
        weights.setdefault(made.get(node.input[1]), set()).add(node.input[1].removeprefix("net."))
    kept = {f"{layer}.weight" for layer in KEPT}
    assert weights[None] == kept  # the others are dequantized
    assert len(weights["DequantizeLinear"]) > 20


REFUSED = [
    ({"out": "model.tflite"}, ["'.tflite'", ".onnx", ".pt2"]),
    ({"checkpoint": "nothing.pth"}, ["nothing.pth", "no such file"]),
    ({"options": ["test.refine=1", "test.flip=True"]}, ["test.refine=1, test.flip=True", "test.flip=False"]),
    ({"options": ["test.tiles=640"]}, ["test.tiles=640", "test.tiles=None"]),
    ({"options": ["model.multiple=16"]}, ["model.multiple=16", "--cfg-options model.multiple=32"]),
    ({"frame": Frame((64, 100))}, ["64x100", "multiples of 32"]),
]


def test_a_classifier_is_no_detector(tmp_path, capsys):
    path = tmp_path / "best.pth"
    torch.save({"meta": {"task": "classification", "classes": ["a", "b"]}, "state_dict": {}}, path)
    with pytest.raises(SystemExit) as ended:
        cli.export([str(path), str(tmp_path / "model.onnx")])
    assert all(word in str(ended.value) for word in (f"error: checkpoint {path}", "'classification'", "detection"))


@pytest.mark.parametrize(("given", "words"), REFUSED)
def test_what_is_refused(trained, tmp_path, given, words):
    given = {"checkpoint": trained / "last.pth", "out": "model.onnx", **given}
    with pytest.raises(InputError) as caught:
        export_detector(given.pop("checkpoint"), tmp_path / given.pop("out"), **given)
    assert all(word in str(caught.value) for word in words), caught.value
    assert not list(tmp_path.iterdir())
