from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from resdet.engine.calls import Call
from resdet.engine.checkpoints import check_same, read_checkpoint, write_checkpoint
from resdet.engine.config import load_config
from resdet.engine.experiment import build_experiment
from resdet.engine.train import build_runner
from resdet.errors import InputError


def checkpoint(value=1.0):
    return {"meta": {"classes": ["a", "b"], "step": 3}, "state_dict": {"w": torch.full((3,), value)}}


def test_written_is_read(tmp_path):
    write_checkpoint(tmp_path / "last.pth", checkpoint())
    write_checkpoint(tmp_path / "last.pth", checkpoint(2.0))  # replaces
    read = read_checkpoint(tmp_path / "last.pth")
    assert read["meta"] == checkpoint()["meta"]
    torch.testing.assert_close(read["state_dict"]["w"], torch.full((3,), 2.0))
    assert os.listdir(tmp_path) == ["last.pth"]


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def half_then_full(content, file, **_):
    file.write(b"half of it")
    raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")  # how torch tells it


@pytest.mark.parametrize(
    ("place", "fails"),
    [("torch.save", full_disk), ("torch.save", half_then_full), ("os.fsync", full_disk), ("os.replace", full_disk)],
)
@pytest.mark.parametrize("before", [True, False])
def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch, place, fails, before):
    path = tmp_path / "best.pth"
    if before:
        write_checkpoint(path, checkpoint(5.0))
    monkeypatch.setattr(place, fails)
    with pytest.raises(InputError) as caught:
        write_checkpoint(path, checkpoint(6.0))
    monkeypatch.undo()
    message = str(caught.value)
    assert message.startswith(f"saving {path}\n")
    assert "space on the disk" in message
    assert ("as it was stays" if before else "nothing was written") in message
    assert os.listdir(tmp_path) == (["best.pth"] if before else [])
    if before:
        torch.testing.assert_close(read_checkpoint(path)["state_dict"]["w"], torch.full((3,), 5.0))


def test_an_interrupted_write_leaves_no_stray_file(tmp_path, monkeypatch):
    def stop(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path / "last.pth", checkpoint())
    assert os.listdir(tmp_path) == []


class Foreign:
    """An object that only unpickling could read."""


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        (b"", "a .pth of a run"),
        (b"not a checkpoint at all", "a .pth of a run"),
        ({"state_dict": {}}, "no state_dict with meta"),
        ({"state_dict": {}, "meta": None}, "no state_dict with meta"),
        ({"meta": {"classes": ["a"]}}, "no state_dict with meta"),
        ([1, 2], "no state_dict with meta"),
        ({"state_dict": {}, "meta": Foreign()}, "a .pth of a run"),
    ],
)
def test_what_is_no_checkpoint(tmp_path, content, words):
    path = tmp_path / "x.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(InputError) as caught:
        read_checkpoint(path)
    assert str(caught.value).startswith(f"checkpoint {path}\n")
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize("name", ["model_final.pkl", "epoch_12.pth", "torchvision.pth", "ours.safetensors"])
def test_a_detector_of_another_program(tmp_path, name):
    path, state = tmp_path / name, {"rpn_head.rpn_cls.bias": torch.zeros(3)}
    if name.endswith(".pkl"):
        path.write_bytes(pickle.dumps({"model": {"proposal_generator.rpn_head.conv.bias": np.zeros(3)}}))
    elif name.startswith("epoch"):
        torch.save({"state_dict": state, "meta": {"seed": np.float64(0.3)}}, path)
    elif name.endswith(".pth"):
        torch.save({"rpn.head.cls_logits.bias": torch.zeros(3), "backbone.body.conv1.weight": torch.zeros(1)}, path)
    else:
        save_file(state, path)
    with pytest.raises(InputError, match=r"checkpoint .*\n  found:  ") as caught:
        read_checkpoint(path)
    command = f"`python tools/convert.py {path} {Path('work_dirs') / path.stem}.pth`"
    assert command in str(caught.value).splitlines()[2] and len(str(caught.value).splitlines()) == 3


def test_a_truncated_checkpoint(tmp_path):
    path = tmp_path / "last.pth"
    write_checkpoint(path, checkpoint())
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"last\.pth"):
        read_checkpoint(path)
    with pytest.raises(InputError, match="checkpoint"):
        read_checkpoint(tmp_path)  # a folder


def test_classes_must_be_the_same_in_the_same_order():
    check_same("x.pth", {"classes": ["a", "b"]}, classes=("a", "b"))
    for found in (["a"], ["b", "a"], ["a", "c"]):
        with pytest.raises(InputError) as caught:
            check_same("x.pth", {"classes": found}, classes=["a", "b"])
        assert f"{len(found)} classes ({', '.join(found)})" in str(caught.value)
        assert "2 classes (a, b), as the data has" in str(caught.value)


def runner_of(config: Path, work_dir: Path, *options: str):
    experiment = build_experiment(load_config(config, options), load_init=False)
    return build_runner(experiment, work_dir=work_dir, launcher="none", auto_scale_lr=False)[0]


META = {"step": 1, "best": 0.0, "without_better": 0, "figures": {}}


def test_weights_that_are_not_finite_are_not_saved(cls_config, tmp_path):
    runner = runner_of(cls_config, tmp_path)
    runner.save_checkpoint(str(tmp_path), "last.pth", meta=META)
    before = (tmp_path / "last.pth").read_bytes()
    with torch.no_grad():
        runner.model.net.net.fc.weight[0, 0] = float("nan")
    with pytest.raises(InputError, match=r"step 1\n.*not finite: net\.net\.fc\.weight\n") as caught:
        runner.save_checkpoint(str(tmp_path), "last.pth", meta=META)
    assert "nothing was saved" in str(caught.value)
    assert (tmp_path / "last.pth").read_bytes() == before


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        (lambda c: c.pop("optimizer"), "weights without an optimizer"),
        (lambda c: c["meta"].update(classes=["x", "y"]), "2 classes (x, y)"),
        (lambda c: c["optimizer"]["param_groups"][0]["params"].pop(), "resuming"),
        (lambda c: c["state_dict"].pop("net.net.fc.weight"), "1 missing (net.net.fc.weight)"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_not_resumed(cls_config, tmp_path, saved, words):
    runner = runner_of(cls_config, tmp_path)
    runner.save_checkpoint(str(tmp_path), "last.pth", meta=META)
    content = torch.load(tmp_path / "last.pth", weights_only=True)
    saved(content)
    torch.save(content, tmp_path / "last.pth")
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    with pytest.raises(InputError) as caught:
        runner.resume(str(tmp_path / "last.pth"))
    assert words in str(caught.value)
    assert "last.pth" in str(caught.value)


def test_settings_that_weights_do_not_show_are_compared():
    kind = "resdet.detection.build.faster_rcnn_fpn"
    trained = {"classes": ["a"], "model": {"type": kind, "anchor_sizes": [16, 32], "shorter_side": 800}}
    model = {"type": kind, "anchor_sizes": [16, 32], "shorter_side": 600, "context": False}
    call = Call.read({"type": kind, "backbone": "resnet18"}, where="config", section="model")
    # Sizes may differ, and what an older file does not tell has its default.
    check_same("x.pth", trained, model=(model, call))
    with pytest.raises(InputError, match=r"trained with model.anchor_sizes=\[16, 32\]\n.*anchor_sizes=\[8, 16\]"):
        check_same("x.pth", trained, model=({**model, "anchor_sizes": [8, 16]}, call))
    with pytest.raises(InputError, match=r"trained with model.context=False\n.*model.context=True"):
        check_same("x.pth", trained, model=({**model, "context": True}, call))
    with pytest.raises(InputError, match=r"trained with model.type=resdet.*_fpn\n.*faster_rcnn_c4"):
        check_same("x.pth", trained, model=({**model, "type": "resdet.detection.build.faster_rcnn_c4"}, call))
