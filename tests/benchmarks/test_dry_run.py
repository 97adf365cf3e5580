"""``--dry-run``: what it says, and that it leaves nothing."""

from __future__ import annotations

import json
import os

import pytest
import torch

from resdet import cli
from resdet.benchmarks.dry_run import dry_run, summary, validations_between
from resdet.benchmarks.trial import Trial
from resdet.engine.checkpoints import read_checkpoint
from resdet.engine.config import load_config
from resdet.engine.train import train
from resdet.errors import InputError


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("every", [1, 3, 6, 7])
@pytest.mark.parametrize("done", [0, 2, 3, 5, 6, 8])
def test_validations_are_counted_as_the_loop_makes_them(done, every, last):
    total = 6
    by_hand = sum(last if step == total else step % every == 0 for step in range(done + 1, total + 1))
    assert validations_between(done, total, every=every, last=last) == by_hand


@pytest.mark.parametrize("kind", ["det_config", "cls_config"])
def test_it_tells_and_leaves_nothing(kind, request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config(request.getfixturevalue(kind), ("schedule.validate_every=2",))
    found = dry_run(config, work_dir=tmp_path / "run")
    assert os.listdir(tmp_path) == []
    assert (found.steps, found.validations) == (6, 3)
    assert found.batch_size == config.loader.batch_size <= found.largest_batch <= found.training_images
    assert min(found.memory, found.step_speed, found.loader_speed, found.seconds_per_step) > 0
    seconds = 6 * found.seconds_per_step + 3 * found.seconds_per_validation
    assert found.hours == pytest.approx(seconds / 3600)
    assert f"{found.training_images} training and {found.validation_images} validation images" in summary(found)


@pytest.mark.parametrize("kind", ["config", "second_config"])
def test_localizers(tiny_loc, tmp_path, kind):
    found = dry_run(load_config(getattr(tiny_loc, kind)), work_dir=tmp_path / "run")
    assert (found.steps, found.validations, found.validation_images) == (6, 1, 5)
    assert os.listdir(tmp_path) == []


def test_the_weights_stay_as_they_are(det_config, tmp_path, monkeypatch):
    kept = []
    original = Trial.validation

    def compare(trial):
        kept.append({name: value.clone() for name, value in trial.experiment.net.named_parameters()})
        return original(trial)

    monkeypatch.setattr(Trial, "validation", compare)
    dry_run(load_config(det_config), work_dir=tmp_path)
    train(load_config(det_config, ("schedule.length=1", "schedule.milestones=()", "optimizer.lr=0")), work_dir=tmp_path)
    untrained = read_checkpoint(tmp_path / "last.pth")["state_dict"]
    assert kept[0] and all(torch.equal(untrained[f"net.{name}"], value) for name, value in kept[0].items())


def test_what_is_left_of_a_run_that_goes_on(det_config, tmp_path):
    train(load_config(det_config, ("schedule.length=2", "schedule.milestones=()")), work_dir=tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    config = load_config(det_config)
    assert dry_run(config, work_dir=tmp_path, resume="auto").steps == 4
    with pytest.raises(InputError, match=r"last\.pth of another run"):
        dry_run(config, work_dir=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_picture_that_is_none_is_found(write_config, tiny, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for path in tiny.images.iterdir():
        (images / path.name).write_bytes(path.read_bytes())
    (images / "000002.png").write_bytes(b"none")
    config = load_config(write_config((str(tiny.images), str(images))))
    with pytest.raises(InputError, match=r"1 of 8 training images that will not be read.*000002\.png"):
        dry_run(config, work_dir=tmp_path / "run")


def test_the_flags(det_config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cli.train("detection", "", [str(det_config), "--dry-run", "--json", "found.json"])
    assert "images fit" in capsys.readouterr().out
    record = json.loads((tmp_path / "found.json").read_text())
    assert record["steps"] == 6 and record["config"]["path"] == str(det_config)
    assert os.listdir(tmp_path) == ["found.json"]
    for flags in (["--dry-run", "--seeds", "1"], ["--dry-run", "--launcher", "pytorch"], ["--json", "x.json"]):
        with pytest.raises(SystemExit, match="2"):
            cli.train("detection", "", [str(det_config), *flags])
