"""``resdet.Classifier``, and ``tools/eval.py`` of a classification config, on files of several origins."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

import resdet
from resdet import cli
from resdet.backbones.registry import BACKBONES
from resdet.datasets.folder import FolderDataset
from resdet.datasets.images import read_image
from resdet.datasets.sources import test_view as make_view
from resdet.engine.config import load_config
from resdet.engine.evaluate import evaluate
from resdet.engine.experiment import load_experiment
from resdet.engine.train import train
from resdet.errors import InputError

CIFAR = Path(__file__).parents[2] / "configs" / "cifar10_resnet20.py"
MEAN = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
STD = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)


@pytest.fixture(scope="module")
def run(cls_config, tmp_path_factory):
    """Work dir of a classifier trained for six steps."""
    work_dir = tmp_path_factory.mktemp("classifier")
    train(load_config(cls_config), work_dir=work_dir)
    return work_dir


@pytest.fixture(scope="module")
def paths(tiny):
    return sorted((tiny.folders / "val").glob("*/*.png"))


def test_a_published_file_and_a_checkpoint_tell_their_net(cls_config, run, paths):
    alone = resdet.Classifier(run / "resnet18-half.safetensors", device="cpu")
    with_config = resdet.Classifier(cls_config, run / "resnet18-half.safetensors", device="cpu")
    assert alone.classes == with_config.classes == ("blue", "green", "red")
    one, two = alone(paths[0]), with_config(paths[0])
    torch.testing.assert_close(one.probabilities, two.probabilities)
    assert one.labels.tolist() == two.labels.tolist() and sorted(one.labels.tolist()) == [0, 1, 2]
    assert one.names == tuple(alone.classes[label] for label in one.labels)
    assert one.probabilities.sum() == pytest.approx(1)
    assert one.probabilities.tolist() == sorted(one.probabilities.tolist(), reverse=True)
    of_run = resdet.Classifier(run / "last.pth", device="cpu")
    assert of_run.classes == alone.classes and of_run(paths[:2])[1].labels.shape == (3,)


def test_it_says_what_eval_counts(cls_config, run, tiny, paths):
    classifier = resdet.Classifier(run / "last.pth", device="cpu")
    right = [path.parent.name == answer.names[0] for path, answer in zip(paths, classifier(paths), strict=True)]
    metrics = evaluate(load_experiment(load_config(cls_config), run / "last.pth"))
    assert metrics["top1"] == pytest.approx(sum(right) / len(right))


def test_an_answer_does_not_depend_on_the_batch_or_the_kind_of_picture(run, paths):
    classifier = resdet.Classifier(run / "last.pth", device="cpu")
    for single, several in zip(
        map(classifier, paths[:3]), classifier([read_image(path) for path in paths[:3]]), strict=True
    ):
        torch.testing.assert_close(single.probabilities, several.probabilities)
    assert classifier([]) == []


def test_the_views(cls_config, run, paths, tmp_path):
    torch.manual_seed(0)
    torch.save(BACKBONES.build("resnet18-half", num_classes=3).state_dict(), tmp_path / "random.pth")

    def ask(picture, **how):
        """Probabilities in the order of the labels."""
        answer = resdet.Classifier(cls_config, tmp_path / "random.pth", device="cpu", **how)(picture)
        return answer.probabilities[answer.labels.argsort()]

    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    centre, ten, dense = (ask(image, **how) for how in ({}, {"view": "ten-crop"}, {"view": "dense", "sides": (36, 48)}))
    mirrored = ask(image[:, ::-1].copy())
    torch.testing.assert_close(ask(image, flip=True), (centre + mirrored) / 2, atol=1e-3, rtol=0)
    for answer in (ten, dense):
        assert answer.sum() == pytest.approx(1)
        assert (answer - centre).abs().max() > 1e-5
    for wrong, words in (
        ({"view": "crop"}, "centre, ten-crop or dense"),
        ({"sides": (36,)}, "view='dense'"),
        ({"view": "dense", "flip": True}, "mirrored already"),
        ({"classes": ("a", "b")}, "3, as the net has"),
    ):
        with pytest.raises(InputError, match=words):
            resdet.Classifier(run / "last.pth", **wrong)


def torch_error(net: nn.Module, data: FolderDataset) -> float:
    """Top-1 error by plain torch."""
    wrong = 0
    with torch.no_grad():
        for index in range(len(data)):
            image, label = data[index]
            wrong += int(net(((image - MEAN) / STD)[None]).argmax()) != label
    return wrong / len(data)


@pytest.mark.parametrize("form", ["bare", "module.", "state_dict", "model"])
def test_files_of_torchvision_are_evaluated(write_config, cls_config, tiny, tmp_path, form):
    torch.manual_seed(0)
    net = torchvision.models.resnet18(num_classes=3).eval()
    nn.init.normal_(net.fc.weight)
    state = net.state_dict()
    if form == "module.":
        state = {f"module.{name}": value for name, value in state.items()}
    torch.save(state if form in ("bare", "module.") else {form: state, "epoch": 3}, tmp_path / "net.pth")
    config = write_config(('backbone="resnet18-half"', 'backbone="resnet18"'), base=cls_config)
    metrics = evaluate(load_experiment(load_config(config), tmp_path / "net.pth"))
    data = FolderDataset(tiny.folders, "val", view=make_view(crop=32, shorter_side=36))
    assert metrics["top1_error"] == pytest.approx(torch_error(net, data))
    classifier = resdet.Classifier(config, tmp_path / "net.pth", classes=("x", "y", "z"))
    assert set(classifier(sorted((tiny.folders / "val").glob("*/*.png"))[0]).names) == {"x", "y", "z"}
    with pytest.raises(InputError, match="no description of its net"):
        resdet.Classifier(tmp_path / "net.pth")


def test_cifar_files_under_the_names_in_use(tmp_path):
    net = BACKBONES.build("cifar-resnet20", num_classes=10)
    state = {f"module.{k.replace('fc.', 'linear.')}": v for k, v in net.state_dict().items()}
    torch.save({"state_dict": state, "best_prec1": 91.7}, tmp_path / "resnet20.th.pth")
    config = CIFAR
    classifier = resdet.Classifier(config, tmp_path / "resnet20.th.pth", device="cpu")
    assert len(classifier.classes) == 10
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    answer = classifier(image)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7)))
    wanted = net.eval()(((image - mean) / std)[None]).softmax(1)[0]
    torch.testing.assert_close(answer.probabilities[answer.labels.argsort()], wanted, atol=1e-5, rtol=1e-4)
    with pytest.raises(InputError, match="sees images of 32 whole"):
        resdet.Classifier(config, tmp_path / "resnet20.th.pth", view="ten-crop")


def test_the_name_in_a_file_is_compared(cls_config, write_config, run):
    other = write_config(('backbone="resnet18-half"', 'backbone="resnet18"'), base=cls_config)
    for path in (run / "last.pth", run / "resnet18-half.safetensors"):
        with pytest.raises(InputError, match=r"weights of backbone 'resnet18-half'\n.*'resnet18'"):
            load_experiment(load_config(other), path)


def test_what_a_nameless_file_is_taken_for_is_said(tmp_path, caplog):
    torch.save(BACKBONES.build("cifar-resnet20", num_classes=10).state_dict(), tmp_path / "bare.pth")
    with caplog.at_level(logging.INFO, logger="resdet"):
        resdet.Classifier(CIFAR.with_name("cifar10_plain20.py"), tmp_path / "bare.pth")
    assert "does not name its net: taken for cifar-plain20, whose shapes cifar-resnet20 has too" in caplog.text


def test_the_tool_says_what_it_evaluates(cls_config, run, capsys, caplog):
    with caplog.at_level(logging.INFO, logger="resdet"):
        cli.evaluate([str(cls_config), str(run / "resnet18-half.safetensors"), "--flip"])
    assert "evaluating 25 images, 3 classes, crop 32, shorter_side 36, crops 1, mirrored too" in caplog.text
    assert "top1_error" in capsys.readouterr().out


def test_views_that_a_data_set_does_not_offer(run, capsys):
    for flag in ("--ten-crop", "--dense"):
        with pytest.raises(SystemExit) as caught:
            cli.evaluate([str(CIFAR), "x.pth", flag])
        assert str(caught.value.code).startswith(f"error: {flag} with config {CIFAR}")
        assert "needed: --flip, or none of these flags" in str(caught.value.code)


def test_publishing_is_said_and_weights_are_not_listed(cls_config, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="resdet"):
        train(load_config(cls_config), work_dir=tmp_path)
    assert "publishing: BN statistics over the training images, then a test of 25 images" in caplog.text
    assert f"published {tmp_path / 'resnet18-half.safetensors'}: top-1 error" in caplog.text
    (log,) = tmp_path.glob("*/*.log")
    assert "init_weights" not in log.read_text()
    with caplog.at_level(logging.INFO, logger="resdet"):
        train(
            load_config(cls_config, [f"model.init={tmp_path / 'resnet18-half.safetensors'}", "schedule.length=1"]),
            work_dir=tmp_path / "again",
        )
    assert f"tensors of {tmp_path / 'resnet18-half.safetensors'}" in caplog.text
