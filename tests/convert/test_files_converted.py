from __future__ import annotations

import os
import pickle

import foreign_states
import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from torch.testing import assert_close

from resdet.backbones.registry import BACKBONES
from resdet.backbones.resnet import ResNet
from resdet.backbones.weights import init_backbone, load_exactly, read_weights
from resdet.cli import convert as run_tool
from resdet.convert import renaming as convert_state
from resdet.convert.files import convert_file
from resdet.detection import build
from resdet.engine.checkpoints import read_checkpoint
from resdet.engine.tasks.detection import DetectionAdapter
from resdet.errors import InputError
from resdet.labels import COCO_CLASSES, VOC_CLASSES

SMALL = {"depths": (1, 1, 1, 1), "widths": (4, 4, 4, 4)}
DETECTOR = {**SMALL, "pyramid_width": 8, "head_width": 16}


@pytest.fixture(autouse=True)
def small_backbones(monkeypatch):
    """Registered nets of these convolutions."""
    from functools import partial

    from resdet.backbones.blocks import Bottleneck

    names = {"small": "3x3", "small-1x1": "1x1"}
    for name, stride_on in names.items():
        block = partial(Bottleneck, stride_on=stride_on)
        builder = partial(ResNet, block, SMALL["depths"], widths=SMALL["widths"], expansion=4)
        BACKBONES.register(name, lambda num_classes, b=builder: b(num_classes=num_classes), channels=(16,) * 4)
    monkeypatch.setattr(convert_state, "TRUNKS", ("small",))
    yield
    for name in names:
        del BACKBONES._entries[name]


def as_arrays(state):
    return {key: value.numpy() for key, value in state.items()}


def dump(path, content):
    path.write_bytes(pickle.dumps(content, protocol=2))
    return path


def detectron2_file(path, **sizes):
    state = foreign_states.detectron2(False, **SMALL, make=foreign_states.Random(), **{"classes": 2, **sizes})
    return dump(path, {"model": as_arrays(state), "__author__": "Detectron2 Model Zoo"})


def load(path):
    """The net that a written file describes by itself, and what the file says."""
    loaded = read_checkpoint(path)
    arguments = dict(loaded["meta"]["model"])
    builder = getattr(build, arguments.pop("type").rpartition(".")[2])
    net = builder(**arguments)
    load_exactly(DetectionAdapter(net), loaded["state_dict"], source=path)
    return net, loaded["meta"]


def test_a_detector(tmp_path):
    source = detectron2_file(tmp_path / "model_final.pkl")
    report = convert_file(source, tmp_path / "new" / "ours.pth", classes="cat, dog")
    assert report.kind == "detectron2 Faster R-CNN C4" and report.classes == ("cat", "dog")
    net, meta = load(report.out)
    assert report.tensors == len(net.state_dict())
    assert meta["task"] == "detection" and meta["classes"] == ["cat", "dog"]
    assert meta["converted_from"]["file"] == "model_final.pkl" and len(meta["converted_from"]["sha256"]) == 8
    model = meta["model"]
    assert model["type"] == "resdet.detection.build.faster_rcnn_c4" and model["backbone"] == "small-1x1"
    assert model["test_proposals"] == [6000, 1000] and model["pooling"] == "align" and not model["rounded_anchors"]
    assert "init" not in model and {"score_threshold", "frozen_stages", "context"} <= set(model)  # defaults, too
    their_row = foreign_states.detectron2(False, **SMALL, classes=2, make=foreign_states.Random())
    assert_close(net.roi_head.class_logits.bias.data, their_row["roi_heads.box_predictor.cls_score.bias"])
    answer = net.eval().predict([torch.zeros(3, 40, 60, dtype=torch.uint8)])[0]
    assert answer.boxes.shape[1] == 4


@pytest.mark.parametrize(("count", "names"), [(80, COCO_CLASSES), (20, VOC_CLASSES)])
def test_names_that_a_count_stands_for(tmp_path, count, names):
    report = convert_file(detectron2_file(tmp_path / "a.pkl", classes=count), tmp_path / "b.pth")
    assert report.classes == names


def test_names_of_a_file(tmp_path):
    (tmp_path / "names.txt").write_text("cat\n\nbig dog \n")
    report = convert_file(detectron2_file(tmp_path / "a.pkl"), tmp_path / "b.pth", classes=str(tmp_path / "names.txt"))
    assert report.classes == ("cat", "big dog")


def mmdetection_file(path, meta):
    state = foreign_states.mmdetection(True, **DETECTOR, classes=2, make=foreign_states.Random())
    hub = {"log_scalars": {"train/loss": HistoryBuffer([1.0], [1])}, "runtime_info": {"best": np.float64(0.3)}}
    torch.save({"meta": meta, "state_dict": state, "message_hub": hub}, path)
    return path


def test_a_training_file_of_mmdetection(tmp_path):
    config = "model = dict(backbone=dict(style='pytorch'), data_preprocessor=dict(mean=[123.675, 116.28, 103.53],"
    config += " std=[58.395, 57.12, 57.375], bgr_to_rgb=True))"
    meta = {"cfg": config, "dataset_meta": {"classes": ("cat", "dog")}, "epoch": 12}
    report = convert_file(mmdetection_file(tmp_path / "epoch_12.pth", meta), tmp_path / "ours.pth")
    assert report.kind == "mmdetection Faster R-CNN FPN" and report.classes == ("cat", "dog")
    net, meta = load(report.out)
    assert meta["model"]["backbone"] == "small" and net.roi_head.pooling.samples == 0
    # what the user says wins over the file, in the file's order
    report = convert_file(tmp_path / "epoch_12.pth", tmp_path / "ours.pth", classes=["Katze", "Hund"])
    assert report.classes == ("Katze", "Hund")


@pytest.mark.parametrize("make", [foreign_states.caffe2, foreign_states.caffe])
def test_a_backbone(tmp_path, make):
    state = make(**SMALL, classes=5, make=foreign_states.Random())
    source = dump(tmp_path / "R-small.pkl", as_arrays(state))
    report = convert_file(source, tmp_path / "ours.safetensors")
    assert report.classes == () and report.kind.startswith("ImageNet ResNet")
    _, facts = read_weights(report.out)
    assert facts["backbone"] == "small-1x1" and facts["converted_from"]["file"] == "R-small.pkl"
    net = init_backbone("small-1x1", report.out, num_classes=5)
    assert_close(net.fc.bias.data, state["fc1000.bias" if make is foreign_states.caffe else "fc1000_b"])
    with pytest.raises(InputError, match=r"weights of backbone 'small-1x1'\n  needed: weights of backbone 'small'"):
        init_backbone("small", report.out)


def test_a_backbone_without_a_classifier(tmp_path):
    state = foreign_states.caffe2(**SMALL, make=foreign_states.Random())
    state = {k: v for k, v in state.items() if not k.startswith("fc")}
    report = convert_file(dump(tmp_path / "a.pkl", as_arrays(state)), tmp_path / "b.safetensors")
    assert "no classifier in the file: for detectors only" in report.notes
    assert not any(key.startswith("fc.") for key in read_weights(report.out)[0])
    init_backbone("small-1x1", report.out)


@pytest.mark.parametrize(
    ("out", "classes", "found"),
    [
        ("b.pkl", "a,b", r"b\.pkl\n  found:  suffix '.pkl'"),
        (
            "b.safetensors",
            "a,b",
            r"suffix '.safetensors' for detectron2 Faster R-CNN C4\n  needed: a name that ends in .pth",
        ),
        ("b.pth", None, r"a\.pkl\n  found:  2 classes without names\n  needed: --classes: 2 names"),
        ("b.pth", "a,b,c", r"--classes\n  found:  3 names\n  needed: 2, as the net has classes"),
        ("b.pth", "a,a", r"classes\n  found:  'a,a'\n  needed: different names"),
        ("b.pth", " , ", r"needed: different names"),
    ],
)
def test_refusals_write_nothing(tmp_path, out, classes, found):
    source = detectron2_file(tmp_path / "a.pkl")
    with pytest.raises(InputError, match=found):
        convert_file(source, tmp_path / out, classes=classes)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pkl"]


def test_a_wrong_class_count_in_the_file(tmp_path):
    source = mmdetection_file(tmp_path / "a.pth", {"CLASSES": ("only",)})
    with pytest.raises(InputError, match=r"a.pth: its class names\n  found:  1 names\n  needed: 2"):
        convert_file(source, tmp_path / "b.pth", style="pytorch")


def test_weights_that_are_not_finite(tmp_path):
    state = foreign_states.detectron2(False, **SMALL, classes=2, make=foreign_states.Random())
    state["roi_heads.box_predictor.cls_score.bias"][1] = float("nan")
    source = dump(tmp_path / "a.pkl", as_arrays(state))
    with pytest.raises(InputError, match=r"a\.pkl\n  found:  weights that are not finite: roi_head.class_logits.bias"):
        convert_file(source, tmp_path / "b.pth", classes="a,b")


def test_a_backbone_as_a_detector(tmp_path):
    source = dump(tmp_path / "a.pkl", as_arrays(foreign_states.caffe2(**SMALL, make=foreign_states.Random())))
    with pytest.raises(InputError, match=r"suffix '.pth' for ImageNet ResNet in Caffe2's names"):
        convert_file(source, tmp_path / "b.pth")


def test_our_own_checkpoint_is_no_foreign_one(tmp_path, trained):
    with pytest.raises(InputError, match="no known kind of file"):
        convert_file(trained / "last.pth", tmp_path / "b.pth", style="caffe")


# the tool


def test_the_tool_says_what_it_found(tmp_path, capsys):
    source, out = detectron2_file(tmp_path / "model_final.pkl"), tmp_path / "ours.pth"
    run_tool([str(source), str(out), "--classes", "cat,dog"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("detectron2 Faster R-CNN C4: ") and lines[0].endswith(" tensors")
    assert lines[1:5] == [
        "- BGR pixels over 1, 1, 1: folded into conv1",
        "- stride on the first 1x1 convolution",
        "- ASSUMED, as neither file nor config tells: BGR pixels and stride on the first 1x1 convolution (the model "
        "zoo's); if it finds little, say --config FILE.yaml, or --channels rgb, --stride-on 3x3",
        "- anchors 32, 64, 128, 256, 512, not rounded; reordered, ratios outermost",
    ]
    assert lines[-3:] == [
        "2 classes: cat, dog",
        f"-> {out}",
        "next: a copy of configs/converted_coco.py with your own test data, and tools/eval.py",
    ]


def test_the_tool_reads_a_config(tmp_path, capsys):
    source, out = detectron2_file(tmp_path / "model_final.pkl"), tmp_path / "ours.pth"
    (tmp_path / "config.yaml").write_text(
        "INPUT: {FORMAT: BGR, MIN_SIZE_TEST: 480}\nMODEL: {RESNETS: {STRIDE_IN_1X1: no}}"
    )
    run_tool([str(source), str(out), "--classes", "cat,dog", "--config", str(tmp_path / "config.yaml")])
    printed = capsys.readouterr().out
    assert "stride on the 3x3" in printed and "ASSUMED" not in printed
    net, meta = load(out)
    assert meta["model"]["backbone"] == "small" and meta["model"]["rounding"] == "detectron2"
    assert net.preprocess.shorter_side == (480,)
    with pytest.raises(SystemExit, match=r"--config .*none\.yaml\n  found:  "):
        run_tool([str(source), str(out), "--config", str(tmp_path / "none.yaml")])


class Payload:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("name", ["a.pkl", "a.pth"])
def test_a_hostile_file_through_the_tool(tmp_path, name):
    trace, path = tmp_path / "made", tmp_path / name
    content = {"model": {"a": torch.zeros(1) if name == "a.pth" else np.zeros(1)}, "x": Payload(os.mkdir, str(trace))}
    torch.save(content, path) if name == "a.pth" else dump(path, content)
    with pytest.raises(SystemExit) as caught:
        run_tool([str(path), str(tmp_path / "b.pth")])
    assert f"error: {path}\n  found:  objects that only unpickling could read" in str(caught.value)
    assert "posix.mkdir" in str(caught.value)
    assert not trace.exists() and not (tmp_path / "b.pth").exists()
