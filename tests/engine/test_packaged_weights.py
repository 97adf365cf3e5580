"""Weights that come with the package, and training where nothing can be fetched."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

import resdet
from resdet.backbones import weights
from resdet.backbones.published import packaged_weights
from resdet.backbones.weights import NotFetched, init_backbone, read_weights
from resdet.engine.checkpoints import read_checkpoint
from resdet.engine.config import load_config
from resdet.engine.evaluate import evaluate
from resdet.engine.experiment import load_experiment
from resdet.engine.train import train
from resdet.errors import InputError


def test_the_package_holds_the_half_width_net():
    path = packaged_weights("resnet18-half")
    assert path.is_file() and path.stat().st_size < 6.5e6
    state, facts = read_weights(path)
    assert facts["backbone"] == "resnet18-half" and len(facts["classes"]) == len(state["fc.weight"]) == 200
    assert 0.3 < facts["figures"]["top1"] < 0.7
    net = init_backbone("resnet18-half", "pretrained")
    torch.testing.assert_close(net.conv1.weight, state["conv1.weight"].float(), rtol=0, atol=0)
    assert all(torch.isfinite(value).all() for value in net.state_dict().values() if value.is_floating_point())
    classifier = resdet.Classifier(path, device="cpu")
    answer = classifier(torch.zeros(3, 80, 60, dtype=torch.uint8))
    assert len(classifier.classes) == 200 and float(answer.probabilities.sum()) == pytest.approx(1, abs=1e-4)


def test_nets_without_weights_in_the_package_say_what_there_is():
    with pytest.raises(InputError, match="timm/resnet50"):
        init_backbone("resnet50", "pretrained")


@pytest.fixture
def offline(monkeypatch, write_config):
    """A config of torchvision's ResNet-18, and no way to its weights."""

    def refuse(name):
        raise NotFetched(f"backbone {name!r}, init='pretrained'", found="no route to host", needed="a network")

    monkeypatch.setattr(weights, "_download", refuse)
    return write_config(
        (
            'backbone="resnet18-half",',
            'backbone="torchvision/resnet18", init="pretrained", fallback="resnet18-half",',
        ),
    )


def test_a_detector_falls_back_on_it(offline, tmp_path, tiny, caplog):
    metrics = train(load_config(offline), work_dir=tmp_path / "w")
    assert "no route to host" in caplog.text and "resnet18-half" in caplog.text
    last = tmp_path / "w" / "last.pth"
    assert read_checkpoint(last)["meta"]["model"]["backbone"] == "resnet18-half"
    again = evaluate(load_experiment(load_config(offline), last))
    assert again == pytest.approx(metrics, abs=1e-9, nan_ok=True)
    detector = resdet.Detector(offline, last, device="cpu")
    assert detector(sorted(tiny.images.iterdir())[0]).boxes.shape[1] == 4
    longer = load_config(offline, ["schedule.length=8", "schedule.validate_every=8"])
    train(longer, work_dir=tmp_path / "w", resume="auto")
    assert read_checkpoint(last)["meta"]["step"] == 8


def test_without_a_fallback_the_run_ends(offline, tmp_path):
    with pytest.raises(NotFetched, match="no route to host"):
        train(load_config(offline, ["model.fallback=None"]), work_dir=tmp_path)


def test_published_in_16_bits(cls_config, tmp_path):
    train(load_config(cls_config, ["publish.half=True", "publish.statistics_images=16"]), work_dir=tmp_path)
    path = tmp_path / "resnet18-half.safetensors"
    state = load_file(path)
    kinds = {name: value.dtype for name, value in state.items()}
    assert kinds["conv1.weight"] == kinds["fc.weight"] == torch.float16
    assert kinds["bn1.weight"] == kinds["bn1.running_var"] == kinds["fc.bias"] == torch.float32
    figures = evaluate(load_experiment(load_config(cls_config), path))
    published = json.loads((tmp_path / "metrics.json").read_text())["published"]
    assert figures == pytest.approx(published, abs=1e-9)
