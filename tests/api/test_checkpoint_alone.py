"""A checkpoint suffices: detectors without their config, published files, and the tools on them."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open

import resdet
from resdet import cli
from resdet.api import infer_files
from resdet.cli.commands import COMMANDS, commands
from resdet.engine.checkpoints import read_checkpoint
from resdet.engine.config import find_config, load_config
from resdet.engine.evaluate import evaluate
from resdet.engine.experiment import load_experiment
from resdet.engine.publish import publish_net
from resdet.errors import InputError


@pytest.fixture
def image(tiny):
    return sorted(tiny.images.iterdir())[0]


def test_a_checkpoint_is_a_detector(det_config, trained, image):
    last = trained / "last.pth"
    alone = resdet.Detector(last, device="cpu", score_threshold=0.0)
    assert set(alone.classes) == {"green", "red", "blue"}
    assert alone.category_ids == (2, 5, 9)
    both = resdet.Detector(det_config, last, device="cpu", score_threshold=0.0)
    for a, b in zip(alone(image), both(image), strict=True):
        assert torch.equal(a, b)
    few = resdet.Detector(last, device="cpu", options=["model.max_per_image=2", "test.refine=1"], score_threshold=0.0)
    assert len(few(image).boxes) == 2 and few.net.settings.refine == 1
    assert resdet.Detector(last, device="cpu", test={"vote": 0.5}).net.settings.vote == 0.5


def test_how_it_was_tested_goes_with_it(det_config, tmp_path, image):
    from resdet.engine.train import train

    options = ["test.refine=2", "test.score_threshold=0.125", "schedule.length=1", "schedule.milestones=()"]
    train(load_config(det_config, options), work_dir=tmp_path)
    net = resdet.Detector(tmp_path / "last.pth", device="cpu").net
    assert (net.settings.refine, net.suppression.score_threshold) == (2, 0.125)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"options": ["loader.workers=1"]}, ["'loader.workers'", "model.key=value or test.key=value"]),
        ({"options": ["model.nms"]}, ["'model.nms'"]),
        ({"options": ["test.refne=1"]}, ["refne", "refine"]),
        ({"options": ["model.bakbone=resnet18"]}, ["bakbone", "backbone"]),
        ({"test": {"vote": 2.0}}, ["test.vote", "2.0"]),
        ({"score_threshold": float("nan")}, ["score_threshold"]),
        ({"score_threshold": -1}, ["score_threshold", "-1"]),
    ],
)
def test_what_a_checkpoint_alone_refuses(trained, given, words):
    with pytest.raises(InputError) as caught:
        resdet.Detector(trained / "last.pth", device="cpu", **given)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_config_alone_is_no_detector(det_config):
    with pytest.raises(InputError, match=r"a config alone\n.*Detector\('best.pth'\)"):
        resdet.Detector(det_config)


@pytest.mark.parametrize("half", [False, True])
def test_a_published_detector(det_config, trained, image, tmp_path, half, capsys):
    path = tmp_path / "detector.safetensors"
    cli.publish([str(trained / "last.pth"), str(path), "--licence", "CC0", *["--half"] * half])
    assert str(path) in capsys.readouterr().out
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["resdet"])
        kinds = {file.get_tensor(key).dtype for key in file.keys() if file.get_tensor(key).dim() > 1}  # noqa: SIM118
    assert facts["licence"] == "CC0" and facts["meta"]["category_ids"] == [2, 5, 9]
    assert facts["meta"]["figures"].keys() == read_checkpoint(trained / "last.pth")["meta"]["figures"].keys()
    assert kinds == {torch.float16 if half else torch.float32}
    ours, theirs = (resdet.Detector(p, device="cpu", score_threshold=0.0)(image) for p in (path, trained / "last.pth"))
    if not half:
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        figures = evaluate(load_experiment(load_config(det_config), path))  # every tool reads it
        assert figures == evaluate(load_experiment(load_config(det_config), trained / "last.pth"))
    assert len(ours.boxes) > 0
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        resdet.Detector(path)


def test_what_is_not_published(trained, cls_config, tmp_path):
    with pytest.raises(InputError, match=r"ends in \.safetensors"):
        publish_net(trained / "last.pth", tmp_path / "x.pth")
    from resdet.engine.train import train

    train(load_config(cls_config, ["schedule.length=1", "schedule.milestones=()"]), work_dir=tmp_path / "cls")
    with pytest.raises(InputError, match="a classifier"):
        publish_net(tmp_path / "cls" / "last.pth", tmp_path / "x.safetensors")
    backbone = next((tmp_path / "cls").glob("*.safetensors"))
    with pytest.raises(InputError, match="a backbone alone"):
        resdet.Detector(backbone)


def test_a_folder_of_the_hub(trained, tmp_path, image, monkeypatch):
    with pytest.raises(InputError, match=r"no \.safetensors"):
        resdet.Detector.from_hub(tmp_path)
    path = publish_net(trained / "last.pth", tmp_path / "detector.safetensors")
    detector = resdet.Detector.from_hub(tmp_path, device="cpu", score_threshold=0.0)
    assert torch.equal(detector(image).boxes, resdet.Detector(path, device="cpu", score_threshold=0.0)(image).boxes)
    asked = []
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **how: asked.append(name) or str(tmp_path))
    assert resdet.Detector.from_hub("user/name", device="cpu").classes == detector.classes and asked == ["user/name"]
    publish_net(trained / "last.pth", tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"detector.safetensors, other.safetensors\n.*file="):
        resdet.Detector.from_hub(tmp_path)
    assert resdet.Detector.from_hub(tmp_path, file="other.safetensors", device="cpu").classes == detector.classes


def test_infer_without_a_config(trained, tiny, tmp_path, capsys):
    cli.infer([str(trained / "last.pth"), str(tiny.images), "--out", str(tmp_path), "--score-threshold", "0.05"])
    assert "images ->" in capsys.readouterr().out
    with_config = infer_files(None, trained / "last.pth", [tiny.images], out=tmp_path / "b", score_threshold=0.05)
    assert with_config.images == len(json.loads((tmp_path / "detections.json").read_text())["images"])
    with pytest.raises(SystemExit, match="2"):
        cli.infer([str(trained / "last.pth")])


def test_commands(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["resdet"])
    commands(["--version"])
    assert capsys.readouterr().out.strip() == resdet.__version__
    commands(["-h"])
    told = capsys.readouterr().out
    assert all(f"\n  {name} " in told for name in COMMANDS)
    with pytest.raises(SystemExit, match="did you mean 'train'"):
        commands(["trian"])
    for name in COMMANDS:
        with pytest.raises(SystemExit, match="0"):
            commands([name, "-h"])
        assert capsys.readouterr().out.startswith(f"usage: resdet {name}"), name


def test_configs_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("frcnn_r18_fpn_own", "frcnn_r18_fpn_own.py", "configs/frcnn_r18_fpn_own.py"):
        assert find_config(name).is_file(), name
    (tmp_path / "frcnn_r18_fpn_own.py").write_text("mine = 1\n")
    assert find_config("frcnn_r18_fpn_own.py").resolve() == tmp_path / "frcnn_r18_fpn_own.py"  # one's own comes first
    assert not find_config("other/frcnn_r18_fpn_own.py").exists()
    with pytest.raises(InputError, match="frcnn_r50_fpn_coco"):
        load_config("frcnn_r50_fpn_coca")
