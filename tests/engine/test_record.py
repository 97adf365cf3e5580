"""run.json: what it says of a run at its start, on its way and at its end."""

from __future__ import annotations

import json

import pytest

from resdet.engine.checkpoints import read_checkpoint
from resdet.engine.config import load_config
from resdet.engine.hooks import StepSeed
from resdet.engine.record import LARGEST, RECORD, described, read_record
from resdet.engine.train import train
from resdet.errors import InputError
from resdet.evaluation.report import plain


def test_what_it_says_of_a_finished_run(trained, det_config):
    record = read_record(trained)
    assert (record.task, record.score, record.seed, record.processes) == ("detection", "coco/AP", 0, 1)
    assert (record.steps, record.step, record.best_step, record.finished) == (6, 6, 6, True)  # validated after step 6
    meta = read_checkpoint(trained / "last.pth")["meta"]
    assert (record.best, record.figures) == (meta["best"], meta["figures"])
    assert record.config == {"path": str(det_config), "text": meta["config"]}
    assert record.overrides == () and record.seconds > 0
    assert (record.settings["optimizer.lr"], record.settings["model.backbone"]) == (0.01, "resnet18-half")
    assert "torch" in record.versions and record.began.endswith("+00:00")


def test_overrides_and_the_rate_that_is_used(det_config, tmp_path):
    options = ("schedule.length=1", "schedule.milestones=()", "optimizer.batch_size=4")
    train(load_config(det_config, options), work_dir=tmp_path, auto_scale_lr=True)
    record = read_record(tmp_path)
    assert record.overrides == (*options, "--auto-scale-lr")
    assert record.settings["optimizer.lr"] == pytest.approx(0.01 * 2 / 4)
    assert record.settings["schedule.length"] == 1


def test_a_run_that_is_stopped_and_goes_on(det_config, tmp_path, monkeypatch):
    original, options = StepSeed.before_train_iter, ("run.checkpoint_every=2", "schedule.validate_every=2")
    with monkeypatch.context() as patch:

        def interrupted(self, runner, *args, **kwargs):
            if runner.iter == 5:
                raise KeyboardInterrupt
            original(self, runner, *args, **kwargs)

        patch.setattr(StepSeed, "before_train_iter", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(load_config(det_config, options), work_dir=tmp_path)
    first = read_record(tmp_path)
    assert (first.step, first.steps, first.finished) == (4, 6, False)
    content = json.loads((tmp_path / RECORD).read_text())
    (tmp_path / RECORD).write_text(json.dumps({**content, "seconds": 1000.0, "best": 2.0, "best_step": 3}))
    train(load_config(det_config, options), work_dir=tmp_path, resume="auto")
    last = read_record(tmp_path)
    assert (last.step, last.finished, last.began) == (6, True, first.began)
    assert last.seconds > 1000
    (tmp_path / RECORD).write_text("{")  # damaged: the run goes on all the same
    train(load_config(det_config, options), work_dir=tmp_path, resume="auto")
    assert read_record(tmp_path).seconds < 1000


def test_begun_anew_it_forgets(det_config, tmp_path):
    (tmp_path / RECORD).write_text(json.dumps({"seconds": 1000.0}))
    train(load_config(det_config, ("schedule.length=1", "schedule.milestones=()")), work_dir=tmp_path)
    assert read_record(tmp_path).seconds < 1000


def test_everything_that_a_config_can_say(write_config):
    path = write_config(("optimizer = dict(", 'optimizer = dict(type="AdamW", betas=(0.8, 0.9), '))
    said = described(load_config(path))
    assert said["optimizer.betas"] == [0.8, 0.9]
    assert said["train_data.type"] == "resdet.datasets.coco.read_coco"
    assert (said["task"], said["metric"], said["augmentation"]) == ("detection", "coco", [])
    assert {name.partition(".")[0] for name in said} >= {"loader", "schedule", "run", "test", "model", "test_data"}
    assert json.loads(json.dumps(plain(said))) == said


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[1]", r"record = \[1\]"),
        ("{}", "no 'task'"),
        ('{"x": "%s"}' % ("y" * LARGEST), "more than"),
    ],
)
def test_a_file_that_is_no_record(tmp_path, content, words):
    if content is not None:
        (tmp_path / RECORD).write_text(content)
    with pytest.raises(InputError, match=words):
        read_record(tmp_path)


def test_a_record_with_a_wrong_value(trained, tmp_path):
    content = json.loads((trained / RECORD).read_text())
    for name, value in (("step", -1), ("seconds", "long"), ("figures", [1])):
        (tmp_path / RECORD).write_text(json.dumps({**content, name: value}))
        with pytest.raises(InputError, match=name):
            read_record(tmp_path)
