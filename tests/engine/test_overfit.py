"""``--overfit N``: which images, what is written where, when it ends, and what it says."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from resdet import cli
from resdet.engine import metrics
from resdet.engine.checkpoints import read_checkpoint
from resdet.engine.config import load_config
from resdet.engine.overfit import Overfit, few_steps, overfit, still_falling, verdict
from resdet.engine.record import read_record
from resdet.errors import InputError

# --- which images


def test_images_with_objects_as_the_test_sees_them(write_config, tiny, tmp_path):
    content = json.loads(tiny.train.read_text())
    empty, crowd = (content["images"][place]["id"] for place in (0, 1))
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] != empty]
    for row in content["annotations"]:
        row["iscrowd"] = int(row["image_id"] == crowd)
    (tmp_path / "some.json").write_text(json.dumps(content))
    path = write_config(
        (str(tiny.train), str(tmp_path / "some.json")),
        ("augmentation = ()", 'augmentation = ("flip", "colour")'),
        ("shorter_side=64", "shorter_side=(48, 96, 64)"),
    )
    config = load_config(path)
    few, train_set, test_set = config.task.few(config, 6)
    ids = {image["id"] for image in content["images"]}
    assert set(train_set.annotations.image_ids.tolist()) == ids - {empty, crowd}
    assert train_set.transform is None and few.augmentation == () and few.model.settings.shorter_side == 64
    for (image, target), (other, same) in zip(train_set, test_set, strict=True):
        assert torch.equal(image, other) and torch.equal(target.boxes, same.boxes) and len(target.boxes)
    with pytest.raises(InputError, match=r"7 images\n.*at most 6"):
        config.task.few(config, 7)


def test_the_seed_draws_them(det_config):
    def drawn(seed):
        config = load_config(det_config, (f"run.seed={seed}",))
        return config.task.few(config, 3)[1].annotations.image_ids.tolist()

    assert drawn(0) == drawn(0)
    assert len({tuple(drawn(seed)) for seed in range(6)}) > 1


def test_training_images_of_a_classifier(cls_config, tiny):
    config = load_config(cls_config, ("test_data.crops=10",))
    _, train_set, test_set = config.task.few(config, 3)
    assert train_set is test_set and train_set.data.index.folder == str(tiny.folders / "train")
    assert sorted(label for _, label in (train_set[place] for place in range(3))) == [0, 1, 2]
    assert train_set[0][0].shape == (3, 32, 32)  # one crop
    assert torch.equal(train_set[0, 1][0], train_set[0, 2][0])


def test_a_localizer_has_no_such_trial(tiny_loc):
    config = load_config(tiny_loc.config)
    with pytest.raises(InputError, match="a config of detection or classification"):
        overfit(config, 2, work_dir=tiny_loc.root / "w")


# --- the short training


def test_a_classifier_learns_three_images(cls_config, tmp_path):
    config = load_config(cls_config)
    found = overfit(config, 3, work_dir=tmp_path / "run")
    assert (found.score, found.value, found.fits, found.images) == ("top1", 1.0, True, 3)
    assert found.steps < 400 and found.steps % 20 == 0  # it ends at the validation that will do
    assert found.last_loss < found.first_loss
    assert [path.name for path in tmp_path.iterdir()] == ["run_overfit"]
    assert verdict(config, found).startswith("labels and net fit together: top1 1.000 on 3 training images after")
    record = read_record(tmp_path / "run_overfit")
    assert record.overrides == ("--overfit 3",) and record.step == found.steps


def test_labels_that_contradict_each_other(cls_config, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, size=(36, 36, 3), dtype=np.uint8)
    for name in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "data" / name / "same.png")
    root = tmp_path / "data"
    options = (f"train_data.root={root}", f"test_data.root={root}", "schedule.length=8", "run.seed=0")
    config = load_config(cls_config, options)
    found = overfit(config, 2, work_dir=tmp_path / "run")
    assert (found.value, found.fits, found.steps) == (0.5, False, 8)  # one of the two is wrong, whatever is said
    with pytest.raises(InputError, match=r"do not fit together yet\n.*top1 0.500 on 2 training images after 8 steps"):
        verdict(config, found)


def test_a_detector_stops_when_it_will_do(det_config, tmp_path, monkeypatch):
    scores = iter([0.3, 0.95])
    monkeypatch.setattr(metrics.CocoMetric, "score", lambda self, found: {"coco/AP": 0.5, "coco/AP50": next(scores)})
    config = load_config(det_config, ("schedule.length=40",))
    found = overfit(config, 3, work_dir=tmp_path / "run")
    assert (found.steps, found.score, found.value, found.fits) == (4, "coco/AP50", 0.95, True)  # every 2 steps


def test_a_run_that_is_there_is_left_alone(det_config, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(metrics.CocoMetric, "score", lambda self, found: {"coco/AP": 1.0, "coco/AP50": 1.0})
    config = load_config(det_config, ("schedule.length=2",))
    run = tmp_path / "run"
    run.mkdir()
    (run / "last.pth").write_bytes(b"of a run")
    for _ in range(2):  # its own folder may be written over
        overfit(config, 2, work_dir=run)
    assert [path.name for path in run.iterdir()] == ["last.pth"] and (run / "last.pth").read_bytes() == b"of a run"
    taken = tmp_path / "other_overfit"
    taken.mkdir()
    (taken / "last.pth").write_bytes((trained / "last.pth").read_bytes())
    with pytest.raises(InputError, match=r"other_overfit\n.*run without --overfit"):
        overfit(config, 2, work_dir=tmp_path / "other")
    (taken / "run.json").write_bytes((trained / "run.json").read_bytes())
    with pytest.raises(InputError, match=r"other_overfit\n.*run without --overfit"):
        overfit(config, 2, work_dir=tmp_path / "other")
    overfit(config, 2, work_dir=tmp_path / "other", overwrite=True)
    assert read_checkpoint(taken / "last.pth")["meta"]["step"] == 1  # the first validation will do


def test_the_settings_of_the_short_training(det_config):
    options = ("optimizer.clip_norm=none", "optimizer.accumulate=4", "run.ema=0.9", "schedule.policy=cosine")
    config = load_config(det_config, (*options, "schedule.milestones=()", "loader.batch_size=8"))
    few = few_steps(config, 3, enough=("coco/AP50", 0.9))
    assert (few.loader.batch_size, few.optimizer.accumulate, few.optimizer.clip_norm) == (3, 1, 10.0)
    assert (few.schedule.length, few.schedule.unit, few.schedule.policy) == (400, "step", "step")
    assert (few.schedule.validate_every, few.schedule.warmup_steps, few.run.ema) == (20, 2, None)
    assert few.optimizer.lr == config.optimizer.lr
    said = load_config(det_config, ("schedule.length=5", "schedule.unit=epoch", "schedule.milestones=()"))
    assert few_steps(said, 7, enough=("coco/AP50", 0.9)).schedule.length == 20  # 5 epochs of 4 batches of 2


# --- what it says


def test_a_loss_that_falls():
    assert still_falling([4, 4, 3, 3, 2, 2, 1, 1])  # 1 + 1 after 2 + 2
    assert not still_falling([4, 4, 3, 3, 2, 2, 2, 2])
    assert still_falling([1, 1, 1])  # too few to tell


def found(**changes):
    given = Overfit(8, 400, "coco/AP50", 0.5, 0.9, False, 2.0, 0.5, False, 60.0, {}, "w/run_overfit")
    return given._replace(**changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"falling": True}, "schedule.length=800 schedule.unit=step"),
        ({"last_loss": 1.8}, "another optimizer.lr"),
        ({}, "tools/check_data.py and tools/browse.py for wrong boxes.*w/run_overfit/last.pth"),
    ],
)
def test_what_it_means(det_config, changes, words):
    with pytest.raises(InputError, match=words):
        verdict(load_config(det_config), found(**changes))


def test_the_flags(cls_config, tmp_path, capsys):
    out = tmp_path / "found.json"
    words = [str(cls_config), "--overfit", "3", "--work-dir", str(tmp_path / "run"), "--json", str(out)]
    cli.train("classification", "", words)
    assert "labels and net fit together: top1 1.000" in capsys.readouterr().out
    record = json.loads(out.read_text())
    assert record["fits"] is True and record["config"]["path"] == str(cls_config)
    for flags in (["0"], ["3", "--dry-run"], ["3", "--resume"], ["3", "--check"], ["3", "--seeds", "1"]):
        with pytest.raises(SystemExit, match="2"):
            cli.train("classification", "", [str(cls_config), "--overfit", *flags])
