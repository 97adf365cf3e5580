from __future__ import annotations

import pytest
import torch

from resdet.classification.build import classifier
from resdet.cpu import weight_gradient, winograd
from resdet.detection.build import faster_rcnn_c4
from resdet.engine.checkpoints import read_checkpoint
from resdet.engine.compiled import compile_parts, use_winograd_in_training
from resdet.engine.config import load_config
from resdet.engine.train import train
from resdet.errors import InputError
from resdet.localization.build import per_class_rpn_localizer, region_localizer

SMALL = {"backbone": "resnet18-half", "num_classes": 2}


def compiled(net) -> list[str]:
    return [name for name, module in net.named_modules() if module._compiled_call_impl is not None]


@pytest.mark.parametrize(
    ("build", "parts"),
    [
        (faster_rcnn_c4, ["backbone", "neck", "rpn.head", "roi_head.embedding"]),
        (classifier, ["net"]),
        (per_class_rpn_localizer, ["backbone"]),
        (region_localizer, ["net"]),
    ],
)
def test_what_is_compiled(build, parts):
    net = build(**SMALL)
    assert compiled(compile_parts(net, "off")) == []
    assert compiled(compile_parts(net, "default")) == parts


def test_graphs_begin_a_new_step_with_each_batch(monkeypatch):
    steps = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: steps.append(1))
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    for mode, count in (("default", 0), ("reduce-overhead", 2)):
        net = compile_parts(faster_rcnn_c4(**SMALL, shorter_side=64), mode)
        for _ in range(2):
            net.preprocess([image])
        assert len(steps) == count


def test_blocks_computed_again_with_learning_bn():
    with pytest.raises(InputError, match=r"model.checkpoint with run.compile"):
        compile_parts(classifier(**SMALL, checkpoint=True), "default")
    compile_parts(faster_rcnn_c4(**SMALL, checkpoint=True), "default")  # its BN is frozen


# --- Winograd in training


@pytest.fixture
def always(monkeypatch):
    """Small nets and maps are computed so, too; how often is counted."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(winograd, "LEAST_CHANNELS_IN_TRAINING", 16)
    monkeypatch.setattr(winograd, "LEAST_TILES", 1)
    calls, apply = [], weight_gradient._Winograd.apply
    monkeypatch.setattr(weight_gradient._Winograd, "apply", lambda *a: (calls.append(1), apply(*a))[1])
    return calls


FROZEN = ["model.init=pretrained", "model.frozen_batchnorm=True", "model.frozen_stages=2"]


@pytest.mark.parametrize("options", [[], FROZEN], ids=["learning", "frozen"])
def test_a_run_by_winograd(det_config, tmp_path, always, options):
    options = ["schedule.length=2", "schedule.validate_every=2", *options]
    train(load_config(det_config, options), work_dir=tmp_path / "plain")
    assert not always
    train(load_config(det_config, [*options, "run.winograd=True"]), work_dir=tmp_path / "winograd")
    assert always
    plain, by_winograd = (read_checkpoint(tmp_path / name / "last.pth") for name in ("plain", "winograd"))
    assert list(plain["state_dict"]) == list(by_winograd["state_dict"])
    assert plain["optimizer"]["param_groups"] == by_winograd["optimizer"]["param_groups"]
    for key, value in plain["state_dict"].items():
        torch.testing.assert_close(by_winograd["state_dict"][key], value, rtol=1e-3, atol=1e-4, msg=key)
    same = [torch.equal(by_winograd["state_dict"][key], plain["state_dict"][key]) for key in plain["state_dict"]]
    assert not all(same)  # another rounding


def test_a_run_by_winograd_goes_on(det_config, tmp_path, always):
    def run(name, length, **settings):
        options = ["run.winograd=True", f"schedule.length={length}", f"schedule.validate_every={length}"]
        train(load_config(det_config, options), work_dir=tmp_path / name, **settings)
        return read_checkpoint(tmp_path / name / "last.pth")["state_dict"]

    whole = run("whole", 4)
    run("parts", 2)
    parts = run("parts", 4, resume="auto")
    assert always and all(torch.equal(value, parts[key]) for key, value in whole.items())


def test_where_winograd_cannot_train(cls_config):
    with pytest.raises(InputError, match=r"run.winograd\n.*True on cuda\n.*a CPU"):
        use_winograd_in_training(torch.nn.Conv2d(256, 256, 3, padding=1), torch.device("cuda"))
    of_timm = classifier(backbone="timm/resnet18", num_classes=2)  # its blocks call their convolutions themselves
    for net in (torch.nn.Conv2d(64, 64, 3, padding=1), of_timm):
        with pytest.raises(InputError, match="no convolution that it speeds up"):
            use_winograd_in_training(net, torch.device("cpu"))
    for other in ("amp=bf16", "compile=default"):
        with pytest.raises(InputError, match=f"run.winograd\n.*True with run.{other}"):
            load_config(cls_config, ["run.winograd=True", f"run.{other}"])
