"""What becomes of a picture before and after the graph, where torch is not."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lively import META, lively_net, pictures
from PIL import Image

from resdet.deploy import onnx_detector
from resdet.deploy.onnx_detector import OnnxDetector, fitting_hw, resize, resized
from resdet.detection import preprocess
from resdet.errors import InputError

ROUNDINGS = ("torchvision", "mmdetection", "detectron2")


def test_sizes_are_those_of_the_net():
    draw = np.random.default_rng(0)
    for hw in [(480, 640), (1, 5000), *draw.integers(1, 3000, size=(2000, 2)).tolist()]:
        for rounding in ROUNDINGS:
            assert resized(tuple(hw), 800, 1333, rounding) == preprocess.resized(tuple(hw), 800, 1333, rounding)


def test_a_fixed_input_shrinks_what_does_not_fit():
    rule = {"shorter_side": 600, "longer_side": 1000, "rounding": "torchvision"}
    assert fitting_hw((300, 400), (608, 1024), rule) == (600, 800)
    assert fitting_hw((400, 300), (608, 1024), rule) == (608, 456)  # 800 x 600 is too high: 608 / 400 = 1.52
    assert fitting_hw((1, 9000), (608, 1024), rule) == (1, 1000)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("hw", [(37, 51), (90, 120), (23, 120), (60, 80), (200, 31)])
def test_resizing_is_that_of_torch(hw, antialias):
    picture = np.random.default_rng(0).integers(0, 256, size=(60, 80, 3), dtype=np.uint8)
    wanted = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    wanted = F.interpolate(wanted, hw, mode="bilinear", antialias=antialias)[0].permute(1, 2, 0)
    assert np.abs(resize(picture, hw, antialias=antialias) - wanted.numpy()).max() < 2e-3


WITHOUT = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in {"numpy", "onnxruntime", "PIL", "resdet", *sys.stdlib_module_names, *sys.argv[3:]}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
import resdet
assert not [name for name in sys.modules if name.startswith(("resdet.", "numpy"))  and name != "resdet.version"]
detector = resdet.OnnxDetector(sys.argv[1])
(pixels, found), = detector.stream(sys.argv[2])
print(pixels.shape, *(part.shape for part in found), *detector.classes)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason='ONNX needs pip install "resdet[export]"')
    from resdet.deploy.export import Frame, write_predictor
    from resdet.inference.predictor import Predictor

    path = tmp_path_factory.mktemp("model") / "model.onnx"
    return write_predictor(Predictor([lively_net("c4")]), META, path, frame=Frame((96, 160)))


def test_neither_torch_nor_a_config_is_needed(model, tmp_path):
    image = tmp_path / "image.png"
    Image.fromarray(pictures(1)[0].permute(1, 2, 0).numpy()).save(image)
    done = subprocess.run([sys.executable, "-c", WITHOUT, model, image], capture_output=True, text=True)
    count = len(OnnxDetector(model)(image).boxes)
    assert count > 10 and done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == f"(90, 150, 3) ({count}, 4) ({count},) ({count},) cat dog owl"


def test_pictures_of_any_kind(model, tmp_path):
    detector = OnnxDetector(model, score_threshold=0.3)
    tensor = pictures(1, (50, 95))[0]
    array = tensor.permute(1, 2, 0).numpy()
    picture = Image.fromarray(array)
    picture.save(tmp_path / "a.png")
    answers = detector([tensor, array, picture, str(tmp_path / "a.png"), tmp_path / "a.png"])
    for answer in answers:
        assert len(answer.boxes) and answer.scores.min() > 0.3
        assert all((a == b).all() for a, b in zip(answer, answers[0], strict=True))
        assert (answer.boxes >= 0).all() and (answer.boxes <= [95, 50, 95, 50]).all()
    assert answers[0].boxes.dtype == answers[0].scores.dtype == np.float32 and answers[0].labels.dtype == np.int64
    assert detector([]) == []
    for wrong in (None, array[..., :2], array.astype(float), array[:0]):
        with pytest.raises(InputError, match="image"):
            detector(wrong)


def test_what_it_does_not_open(model, tmp_path, monkeypatch):
    import onnx

    (tmp_path / "text.onnx").write_text("no model")
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "small", ends[:1], ends[1:])
    opset = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "foreign.onnx")
    for given, words in (
        ({"path": "nothing.onnx"}, "no such file"),
        ({"path": tmp_path / "text.onnx"}, "tools/export.py"),
        ({"path": tmp_path / "foreign.onnx"}, "another program's"),
        ({"path": model, "device": "tpu"}, "'tpu'"),
        ({"path": model, "score_threshold": 0.01}, "0.05"),
        ({"path": model, "score_threshold": float("nan")}, "nan"),
    ):
        with pytest.raises(InputError, match=words):
            OnnxDetector(**given)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r'pip install "resdet\[export\]"'):
        onnx_detector.OnnxDetector(model)


def test_a_missing_package_of_export(tmp_path, monkeypatch):
    from resdet.deploy.export import check_ending

    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match=r'no onnx\n.*pip install "resdet\[export\]"'):
        check_ending(tmp_path / "model.onnx")
    check_ending(tmp_path / "model.pt2")
