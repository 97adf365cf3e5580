"""``tools/analyze_cls.py``: what it writes and what it says."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from resdet import cli
from resdet.analysis.experiments import choose_rows, name_paths
from resdet.engine.config import load_config
from resdet.engine.evaluate import evaluate
from resdet.engine.experiment import load_experiment
from resdet.engine.train import train
from resdet.errors import InputError


@pytest.fixture(scope="module")
def runs(cls_config, tmp_path_factory):
    """Work dirs of two kinds of net, trained for six steps."""
    from resdet.engine.train import train

    folder = tmp_path_factory.mktemp("runs")
    for name, backbone in (("residual", "cifar-resnet8"), ("plain", "cifar-plain8")):
        train(load_config(cls_config, [f"model.backbone={backbone}"]), work_dir=folder / name)
    return folder


def call(*arguments):
    """What the tool exits with: None, or its message."""
    try:
        cli.analyze([str(argument) for argument in arguments])
    except SystemExit as error:
        return error.code
    return None


def record(folder, name):
    for picture in folder.glob("*.png"):
        with Image.open(picture) as image:
            assert min(image.size) > 200
    return json.loads((folder / f"{name}.json").read_text())


def test_curves(runs, tmp_path, capsys):
    assert call("curves", runs / "residual", f"other={runs / 'plain'}", "--out", tmp_path) is None
    written = record(tmp_path, "curves")
    assert list(written["runs"]) == ["residual", "other"]
    assert [step for step, _ in written["runs"]["residual"]["train"]] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in written["runs"]["other"]["test"]] == [6]
    assert capsys.readouterr().out.split() == [str(tmp_path / "curves.png"), str(tmp_path / "curves.json")]


@pytest.mark.parametrize("analysis", ["responses", "gradients"])
def test_nets_of_two_kinds_in_one_figure(analysis, runs, cls_config, tmp_path):
    checkpoints = (runs / "residual" / "last.pth", f"p={runs / 'plain' / 'last.pth'}")
    assert call("--out", tmp_path, analysis, cls_config, *checkpoints, "--limit", 6) is None
    written = record(tmp_path, analysis)
    assert list(written[analysis]) == list(written["checkpoints"]) == ["residual", "p"]
    assert written["images"] == 6
    assert len(written["checkpoints"]["p"]["sha256"]) == 64
    assert written["config"]["path"] == str(cls_config)


def test_lesions_and_errors_agree_with_the_evaluation(runs, cls_config, tmp_path):
    checkpoint = runs / "residual" / "last.pth"
    options = ["model.backbone=cifar-resnet8"]
    figures = evaluate(load_experiment(load_config(cls_config, options), checkpoint))
    assert call("lesions", cls_config, checkpoint, "--draws", 1, "--out", tmp_path) is None
    written = record(tmp_path, "lesions")
    assert written["intact"] == pytest.approx(figures["top1_error"])
    assert [row["blocks"] for row in written["single"]] == [[1], [2], [3]]
    assert call("errors", cls_config, checkpoint, "--worst", 4, "--out", tmp_path) is None
    written = record(tmp_path, "errors")
    assert written["top1_error"] == pytest.approx(figures["top1_error"])
    assert [row["name"] for row in written["classes"]] == ["blue", "green", "red"]
    losses = [row["loss"] for row in written["worst_images"]]
    assert len(losses) == 4 and losses == sorted(losses, reverse=True)
    assert (tmp_path / "worst.png").is_file()


def test_paths(runs, cls_config, tmp_path):
    checkpoint = runs / "residual" / "last.pth"
    assert call("paths", cls_config, checkpoint, "--samples", 2, "--limit", 4, "--out", tmp_path) is None
    written = record(tmp_path, "paths")
    assert written["share"] == [1 / 8, 3 / 8, 3 / 8, 1 / 8]
    assert written["mean_length"] == 1.5
    assert sum(written["contribution"]) == pytest.approx(1)


def test_mistakes(runs, cls_config, det_config, tmp_path):
    plain = runs / "plain" / "last.pth"
    message = call("paths", cls_config, plain, "--out", tmp_path)
    assert message.startswith("error: block 1 of ResidualNet") and "a plain net" in message
    assert "a classification config" in call("responses", det_config, plain)
    assert "no such file" in call("responses", cls_config, tmp_path / "none.pth")
    assert "1 or more images" in call("responses", cls_config, plain, "--limit", 0)
    assert "no */vis_data/scalars.json" in call("curves", tmp_path)
    assert call("lesions", cls_config, plain, "--draws", 0) == 2
    assert not list(tmp_path.iterdir())


def test_names(tmp_path):
    odd = tmp_path / "lr=0.1"
    odd.mkdir()
    named = name_paths([f"a={tmp_path}/x/last.pth", f"{tmp_path}/run/best.pth", f"{tmp_path}/other/", str(odd)])
    assert list(named) == ["a", "run", "other", "lr=0.1"]
    assert named["a"] == tmp_path / "x" / "last.pth"
    with pytest.raises(InputError, match=r"(?s)both are called 'run'.*NAME=path"):
        name_paths(["run/last.pth", "run/best.pth"])


def test_rows():
    assert sorted(choose_rows(10, 5)) == [0, 2, 4, 6, 8]  # of each class, where they are sorted
    assert sorted(choose_rows(3, 7)) == sorted(choose_rows(3, None)) == [0, 1, 2]
    assert choose_rows(100, 50) == choose_rows(100, 50) != sorted(choose_rows(100, 50))


def test_the_tables_of_the_studies(cls_config, write_config, tmp_path, capsys):
    text = "from resdet.classification.build import classifier\n"
    backbone = (
        'backbone = dict(type=define_net, name="study8", stem="cifar", stages=(("basic", 1, 4, 1),), shortcut="A")\n'
    )
    path = write_config(
        (text, text + "from resdet.backbones.custom import define_net\n"),
        ('backbone="resnet18-half")\n', f'backbone="study8", window=32)\n{backbone}'),
        base=cls_config,
    )
    options = ["backbone.shortcut=dropout", "schedule.length=1", "publish.statistics_images=8"]
    train(load_config(path, options), work_dir=tmp_path / "dropout")
    assert call("studies", tmp_path / "dropout", "--out", tmp_path) is None
    assert "| dropout 0.5" in capsys.readouterr().out
    rows = json.loads((tmp_path / "studies.json").read_text())["tables"]["Table 1, shortcuts"]
    (line,) = [row for row in rows if "ours" in row]
    record = json.loads((tmp_path / "dropout" / "metrics.json").read_text())
    assert line["name"] == "dropout 0.5" and line["ours"] == pytest.approx(100 * record["figures"]["top1_error"])
    assert "no metrics.json" in call("studies", tmp_path)
