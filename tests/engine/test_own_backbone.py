"""A residual net described in a config: trained as a classifier, then under a detector, and told by checkpoints."""

from __future__ import annotations

import pytest

from resdet.engine.checkpoints import read_checkpoint
from resdet.engine.config import load_config
from resdet.engine.evaluate import evaluate
from resdet.engine.experiment import load_experiment
from resdet.engine.tasks.detection import load_detector
from resdet.engine.train import train
from resdet.errors import InputError

SECTION = """
from resdet.backbones.custom import define_net

backbone = dict(
    type=define_net,
    name="slim",
    stem="imagenet",
    stages=(("basic", 1, 8, 1), ("basic", 1, 16, 2), ("bottleneck", 1, 8, 2), ("basic", 1, 32, 2)),
    shortcut="C",
)
"""


@pytest.fixture
def configs(cls_config, det_config, tmp_path):
    paths = []
    for source in (cls_config, det_config):
        path = tmp_path / source.name
        path.write_text(source.read_text().replace('backbone="resnet18-half"', 'backbone="slim"') + SECTION)
        paths.append(path)
    return paths


def test_from_classifier_to_detector(configs, tmp_path, monkeypatch):
    short = ["schedule.length=2", "schedule.validate_every=2", "schedule.milestones=()"]
    train(load_config(configs[0], short), work_dir=tmp_path / "cls")
    published = tmp_path / "cls" / "slim.safetensors"
    config = load_config(configs[1], [*short, f"model.init={published}"])
    figures = train(config, work_dir=tmp_path / "det")
    last = tmp_path / "det" / "last.pth"
    monkeypatch.setattr("resdet.engine.tasks.detection.fold_batchnorm", lambda net: net)  # which rounds otherwise
    assert evaluate(load_experiment(load_config(configs[1]), last)) == pytest.approx(figures, abs=1e-9)
    meta = read_checkpoint(last)["meta"]
    assert meta["model"]["define"]["stages"][2] == ["bottleneck", 1, 8, 2]
    net = load_detector(last, meta["classes"])  # without its config
    assert net.backbone.channels == (8, 16, 32, 32)
    other = configs[1].with_name("other.py")
    other.write_text(configs[1].read_text().replace('shortcut="C"', 'shortcut="B"').replace('"slim"', '"slimmer"'))
    with pytest.raises(InputError, match="trained with"):
        load_experiment(load_config(other), last)


def test_mistakes(configs, tmp_path):
    for change, words in (
        (('shortcut="C"', 'shortcut="D"'), "'A'|'B'|'C'|A, B, C"),
        (('name="slim",', 'name="slim", rocket=1,'), "unknown key 'rocket'"),
        (('("basic", 1, 8, 1), ', '("basic", 1.5, 8, 1), '), "stage 1|stages"),
    ):
        path = tmp_path / "mistake.py"
        text = configs[0].read_text()
        assert change[0] in text
        path.write_text(text.replace(*change))
        with pytest.raises(InputError, match=words):
            train(load_config(path), work_dir=tmp_path / "never")
