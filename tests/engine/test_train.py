from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pytest
import torch

from resdet.detection.faster_rcnn import FasterRCNN
from resdet.engine import metrics, progress
from resdet.engine.checkpoints import read_checkpoint
from resdet.engine.config import load_config
from resdet.engine.evaluate import evaluate
from resdet.engine.experiment import build_experiment, load_experiment
from resdet.engine.hooks import StepSeed
from resdet.engine.record import read_record
from resdet.engine.train import load_trained, train
from resdet.errors import InputError
from resdet.structures import Target


def run(config, work_dir, *options, **how):
    return train(load_config(config, options), work_dir=work_dir, **how)


def scalars(work_dir: Path, key: str) -> list[float]:
    """The logged values of all runs in a folder, by time."""
    files = sorted(work_dir.glob("*/vis_data/scalars.json"), key=os.path.getmtime)
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [row[key] for row in rows if key in row]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(path)["state_dict"]


def assert_identical(a: object, b: object, where: str = "") -> None:
    """Bit by bit, through nested containers."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), f"{where}: {(a - b).abs().max()}"
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_identical(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for number, pair in enumerate(zip(a, b, strict=True)):
            assert_identical(*pair, f"{where}/{number}")
    else:
        assert a == b, where


@pytest.fixture
def stop_before(monkeypatch):
    """``stop_before(n)``: the next run is interrupted as by Ctrl-C when n steps are done."""
    original = StepSeed.before_train_iter

    def arm(step):
        def interrupted(self, runner, *args, **kwargs):
            if runner.iter == step:
                monkeypatch.setattr(StepSeed, "before_train_iter", original)
                raise KeyboardInterrupt
            original(self, runner, *args, **kwargs)

        monkeypatch.setattr(StepSeed, "before_train_iter", interrupted)

    return arm


# --- a run


def test_what_a_run_leaves(trained, det_config):
    assert {"last.pth", "best.pth", "metrics.json"} <= set(os.listdir(trained))
    assert not [name for name in os.listdir(trained) if name.startswith(".")]
    checkpoint = torch.load(trained / "last.pth", weights_only=True)
    meta = checkpoint["meta"]
    assert (meta["step"], meta["task"], meta["classes"]) == (6, "detection", ["blue", "green", "red"])
    assert "faster_rcnn_fpn" in meta["config"]
    record = json.loads((trained / "metrics.json").read_text())
    assert record["figures"].keys() == meta["figures"].keys()
    assert record["figures"]["coco/AP"] == meta["figures"]["coco/AP"] >= 0
    assert record["classes"] == ["blue", "green", "red"]
    assert record["config"]["path"] == str(det_config)
    assert record["checkpoint"]["sha256"]
    assert record["seed"] == 0
    assert len(scalars(trained, "loss")) == 6


def test_losses_fall(det_config, tmp_path):
    options = ("schedule.length=40", "schedule.milestones=()", "schedule.validate_every=40")
    options += ("loader.batch_size=4", "optimizer.clip_norm=2.0")
    run(det_config, tmp_path, *options)
    losses = scalars(tmp_path, "loss")
    assert len(losses) == 40
    assert sum(losses[-8:]) < 0.7 * sum(losses[:8])  # 0.5 and 0.4 with seeds 0 and 1
    names = ("loss_rpn_objectness", "loss_rpn_box", "loss_class", "loss_box")
    parts = [sum(step) for step in zip(*(scalars(tmp_path, name) for name in names), strict=True)]
    assert parts == pytest.approx(losses, rel=1e-4)


def test_the_seed_decides(trained, det_config, tmp_path):
    run(det_config, tmp_path / "same")
    assert_identical(weights(tmp_path / "same" / "last.pth"), weights(trained / "last.pth"))
    run(det_config, tmp_path / "other", "run.seed=1", "schedule.length=1", "schedule.validate_every=1")
    run(det_config, tmp_path / "one", "schedule.length=1", "schedule.validate_every=1")
    other, one = (weights(tmp_path / name / "last.pth") for name in ("other", "one"))
    key = "net.roi_head.class_logits.weight"  # one small step from its initial value
    assert (other[key] - one[key]).abs().mean() > 0.005


def test_loader_processes_change_nothing_and_end(trained, det_config, tmp_path):
    before = set(multiprocessing.active_children())  # of a test whose loader failed
    run(det_config, tmp_path, "loader.workers=2")
    # Loader processes that outlive the run keep the garbage collector waiting for five seconds each.
    assert set(multiprocessing.active_children()) <= before
    assert_identical(weights(tmp_path / "last.pth"), weights(trained / "last.pth"))


# --- resume

PLAIN = ("run.checkpoint_every=3",)  # momentum, warm-up and a milestone are in the config
RICH = (
    *PLAIN,
    *("schedule.policy=cosine", "schedule.milestones=()", "run.ema=0.9", "augmentation=('flip', 'colour')"),
    *("model.shorter_side=(48, 64)", "optimizer.nesterov=True", "schedule.validate_every=2"),
)


@pytest.mark.parametrize("options", [PLAIN, RICH], ids=["plain", "rich"])
@pytest.mark.parametrize("stop", [3, 5])
def test_a_resumed_detector_is_the_same(det_config, tmp_path, stop_before, options, stop):
    run(det_config, tmp_path / "whole", *options)
    stop_before(stop)
    with pytest.raises(KeyboardInterrupt):
        run(det_config, tmp_path / "parts", *options)
    before = read_checkpoint(tmp_path / "parts" / "last.pth")["meta"]["step"]
    assert 3 <= before <= stop
    run(det_config, tmp_path / "parts", *options, resume="auto")
    whole, parts = (read_checkpoint(tmp_path / name / "last.pth") for name in ("whole", "parts"))
    assert parts["meta"]["step"] == 6
    assert_identical(parts, whole)
    assert scalars(tmp_path / "parts", "loss")[-(6 - before) :] == scalars(tmp_path / "whole", "loss")[before:]
    assert_identical(weights(tmp_path / "parts" / "best.pth"), weights(tmp_path / "whole" / "best.pth"))


def test_a_resumed_classifier_is_the_same(cls_config, tmp_path, stop_before):
    options = (
        "run.checkpoint_every=4",
        "optimizer.accumulate=3",
        "loader.workers=1",
    )  # written after 6: a whole update
    options += ("schedule.length=9", "schedule.validate_every=100", "schedule.warmup_steps=3")
    run(cls_config, tmp_path / "whole", *options)
    stop_before(8)
    with pytest.raises(KeyboardInterrupt):
        run(cls_config, tmp_path / "parts", *options)
    assert read_checkpoint(tmp_path / "parts" / "last.pth")["meta"]["step"] == 6
    run(cls_config, tmp_path / "parts", *options, resume=str(tmp_path / "parts" / "last.pth"))
    whole, parts = (read_checkpoint(tmp_path / name / "last.pth") for name in ("whole", "parts"))
    assert_identical(parts, whole)


def test_auto_without_a_checkpoint_starts(det_config, tmp_path, trained):
    run(det_config, tmp_path, resume="auto")
    assert_identical(weights(tmp_path / "last.pth"), weights(trained / "last.pth"))


def test_a_run_killed_in_its_last_validation_is_completed(det_config, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(metrics.CocoMetric, "score", lambda self, found: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(det_config, tmp_path)
    assert not (tmp_path / "best.pth").exists()
    assert read_checkpoint(tmp_path / "last.pth")["meta"]["step"] == 6
    figures = run(det_config, tmp_path, resume="auto")
    assert (tmp_path / "best.pth").exists()
    assert json.loads((tmp_path / "metrics.json").read_text())["figures"]["coco/AP"] == figures["coco/AP"]


def test_another_architecture_is_not_resumed(det_config, trained, tmp_path):
    with pytest.raises(InputError, match=r"trained with model\.head_width=32"):
        run(det_config, tmp_path, "model.head_width=48", resume=str(trained / "last.pth"))
    with pytest.raises(InputError, match="no such file"):
        run(det_config, tmp_path, resume=str(tmp_path / "nothing.pth"))


# --- the settings do what they say

SHORT = ("schedule.milestones=()", "schedule.warmup_steps=0", "optimizer.lr=0.01")


def run_for(config, work_dir, steps, *options, **how):
    run(config, work_dir, *SHORT, f"schedule.length={steps}", f"schedule.validate_every={steps}", *options, **how)
    return read_checkpoint(work_dir / "last.pth")


def test_ema_is_what_is_saved_and_tested(det_config, tmp_path):
    # The average starts at the weights after step 1; with a decay of 3/4 it then is 3/4 w1 + 1/4 w2.
    key = "net.roi_head.class_logits.weight"
    w1, w2 = (run_for(det_config, tmp_path / str(steps), steps)["state_dict"][key] for steps in (1, 2))
    averaged = run_for(det_config, tmp_path / "ema", 2, "run.ema=0.75")
    torch.testing.assert_close(averaged["state_dict"][key], 0.75 * w1 + 0.25 * w2, atol=1e-7, rtol=1e-5)
    assert torch.equal(averaged["ema_state_dict"][f"module.{key}"], w2)
    loaded = load_experiment(load_config(det_config), tmp_path / "ema" / "best.pth")
    assert evaluate(loaded) == pytest.approx(averaged["meta"]["figures"])


def test_the_last_validation_can_be_left_out(det_config, tmp_path):
    options = ("schedule.length=4", "schedule.milestones=()", "schedule.validate_last=False")
    figures = run(det_config, tmp_path / "some", *options, "schedule.validate_every=3")
    assert scalars(tmp_path / "some", "coco/AP") == [figures["coco/AP"]]
    assert read_checkpoint(tmp_path / "some" / "best.pth")["meta"]["step"] == 3
    assert read_checkpoint(tmp_path / "some" / "last.pth")["meta"]["step"] == 4
    for every in (2, 4, 100):  # 2: after the second of four steps, not after the fourth
        out = tmp_path / str(every)
        run(det_config, out, *options, f"schedule.validate_every={every}")
        assert len(scalars(out, "coco/AP")) == (every == 2)
        assert read_checkpoint(out / "last.pth")["meta"]["step"] == 4
        assert (out / "best.pth").exists() == (every == 2)
    assert run(det_config, tmp_path / "100", *options, "schedule.validate_every=100", resume="auto") == {}
    assert json.loads((tmp_path / "100" / "metrics.json").read_text())["figures"] == {}


def test_the_best_of_no_validation_is_not_published(cls_config, tmp_path):
    options = ("schedule.validate_last=False", "schedule.validate_every=6", "publish.checkpoint=best")
    with pytest.raises(InputError, match=r"publish.checkpoint\n  found:  'best' of a run that never validates"):
        run(cls_config, tmp_path, *options)
    figures = run(cls_config, tmp_path, *options[:2])
    assert figures == {} and json.loads((tmp_path / "metrics.json").read_text())["published"]["images"]


def test_a_validation_without_a_terminal_says_where_it_is(det_config, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    run(det_config, tmp_path)
    (log,) = tmp_path.glob("*/*.log")
    for number in (1, 2):  # five images of several sizes
        assert f"validating: {number} of 5 batches, 0:00:0" in log.read_text()


def test_early_stopping(det_config, tmp_path, monkeypatch):
    scores = iter([0.2, 0.25, 0.25, 0.24, 0.9])  # the 2nd is the best, the next two are not better
    monkeypatch.setattr(metrics.CocoMetric, "score", lambda self, found: {"coco/AP": next(scores)})
    options = ("schedule.length=20", "schedule.validate_every=1", "run.early_stopping=2")
    assert run(det_config, tmp_path, *options) == {"coco/AP": 0.24}
    assert read_checkpoint(tmp_path / "last.pth")["meta"]["step"] == 4
    assert read_checkpoint(tmp_path / "best.pth")["meta"]["step"] == 2
    run(det_config, tmp_path, *options, resume="auto")  # it stays stopped
    assert read_checkpoint(tmp_path / "last.pth")["meta"]["step"] == 4


def test_gradient_accumulation_updates_less_often(det_config, tmp_path, monkeypatch):
    updates = []
    original = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self, *args: (updates.append(1), original(self, *args)))
    run_for(det_config, tmp_path, 4, "optimizer.accumulate=2")
    assert len(updates) == 2


def test_clipping_bounds_the_step(det_config, tmp_path):
    # Without momentum and decay one step moves all weights together by lr times the clipped norm.
    options = ("optimizer.momentum=0.0", "optimizer.weight_decay=0.0")
    first = run_for(det_config, tmp_path / "tight", 1, *options, "optimizer.clip_norm=1e-6")["state_dict"]
    for bound, low, high in ((0.5, 0.00499, 0.00501), (None, 0.011, 1.0)):
        after = run_for(det_config, tmp_path / str(bound), 1, *options, f"optimizer.clip_norm={bound}")["state_dict"]
        moved = [(after[k] - first[k]).double().square().sum() for k in first if "running" not in k and "num_" not in k]
        assert low < float(sum(moved)) ** 0.5 < high


def test_auto_scale_lr(det_config, tmp_path):
    options = ("optimizer.batch_size=8", "optimizer.accumulate=2")
    for scaled, lr in ((True, 0.01 * 2 * 2 / 8), (False, 0.01)):
        state = run_for(det_config, tmp_path / str(scaled), 2, *options, auto_scale_lr=scaled)
        assert state["optimizer"]["param_groups"][0]["lr"] == pytest.approx(lr)


def test_bf16_on_the_cpu(det_config, tmp_path, monkeypatch, trained):
    seen = []
    original = FasterRCNN.classify
    monkeypatch.setattr(FasterRCNN, "classify", lambda net, v: (seen.append(original(net, v)), seen[-1])[1])
    run(det_config, tmp_path, "run.amp=bf16")
    assert {predictions.logits.dtype for predictions in seen} == {torch.bfloat16}  # training and validation
    assert all(value.dtype != torch.bfloat16 for value in weights(tmp_path / "last.pth").values())
    assert scalars(tmp_path, "loss")[0] == pytest.approx(scalars(trained, "loss")[0], rel=0.03)


def test_tensorboard(det_config, tmp_path, monkeypatch):
    run_for(det_config, tmp_path / "without", 1)
    assert not list(tmp_path.rglob("events.out.tfevents*"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="no package tensorboard"):
        run_for(det_config, tmp_path / "with", 1, "run.tensorboard=True")


def test_the_curves_in_tensorboard_are_those_of_the_log(det_config, tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    metrics = run(det_config, tmp_path, "run.tensorboard=True")
    (events,) = tmp_path.rglob("events.out.tfevents*")
    curves = accumulators.EventAccumulator(str(events))
    curves.Reload()
    losses = curves.Scalars("loss")
    assert [event.step for event in losses] == list(range(1, 7))
    assert [event.value for event in losses] == pytest.approx(scalars(tmp_path, "loss"), rel=1e-6)
    assert {"lr", "images_per_second", "loss_box"} <= set(curves.Tags()["scalars"])
    (last,) = curves.Scalars("coco/AP")
    assert last.step == 6 and last.value == pytest.approx(metrics["coco/AP"], rel=1e-6)


def test_augmentation_is_used(det_config, tmp_path, trained):
    run(det_config, tmp_path, "augmentation=('vertical_flip',)")
    assert scalars(tmp_path, "loss") != scalars(trained, "loss")


# --- what goes wrong


def test_random_weights_under_frozen_statistics(det_config, tmp_path, trained, monkeypatch):
    frozen = ("model.frozen_batchnorm=True", "model.init=None")
    with pytest.raises(InputError) as caught:
        run(det_config, tmp_path, *frozen)
    where, found, needed = str(caught.value).splitlines()
    assert where == f"config {det_config}, model.init" and found.startswith("  found:  None, random weights, under BN")
    assert needed.endswith("random ones, model.init=None model.frozen_batchnorm=False model.frozen_stages=0")
    assert not tmp_path.joinpath("last.pth").exists()
    # From a whole detector nothing is random, nor is a test.
    options = (*SHORT, "schedule.length=1", f"load_from={trained / 'last.pth'}")
    run(det_config, tmp_path, "model.frozen_batchnorm=True", *options)
    run(det_config, tmp_path, *frozen, *SHORT, "schedule.length=2", resume="auto")
    evaluate(load_experiment(load_config(det_config, frozen), tmp_path / "last.pth"))


def test_weights_that_are_not_there(det_config, cls_config, tmp_path):
    for config, cure in (
        (det_config, "model.init=None model.frozen_batchnorm=False model.frozen_stages=0"),
        (cls_config, "model.init=None"),
    ):
        with pytest.raises(InputError, match=r"model.init=gone.pth\n  found:  no such file\n") as caught:
            run(config, tmp_path, "model.init=gone.pth")
        assert str(caught.value).endswith(f"or, to train from random ones, {cure}")


def test_a_loss_that_is_not_finite(det_config, tmp_path, monkeypatch):
    original, steps = FasterRCNN.loss, []

    def broken(net, images, targets):
        steps.append([t.image_id for t in targets])
        losses = original(net, images, targets)
        return {**losses, "loss_class": losses["loss_class"] * float("nan")} if len(steps) == 4 else losses

    monkeypatch.setattr(FasterRCNN, "loss", broken)
    with pytest.raises(InputError) as caught:
        run(det_config, tmp_path, "run.checkpoint_every=1")
    where, found, needed = str(caught.value).splitlines()
    assert where == f"training, step 4, images {steps[3]}"
    assert "loss_class = nan" in found
    assert "loss_rpn_box = 0." in found
    assert "optimizer.lr" in needed
    checkpoint = read_checkpoint(tmp_path / "last.pth")
    assert checkpoint["meta"]["step"] == 3
    assert all(torch.isfinite(value).all() for value in checkpoint["state_dict"].values())
    assert not (tmp_path / "best.pth").exists()
    assert not (tmp_path / "metrics.json").exists()


def test_a_full_disk_in_a_run(det_config, tmp_path, monkeypatch):
    from resdet.engine import runner

    original, calls = torch.save, []

    def save(*args, **kwargs):
        calls.append(1)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        original(*args, **kwargs)

    monkeypatch.setattr(runner.torch, "save", save)
    with pytest.raises(InputError, match="No space left on device"):
        run(det_config, tmp_path, "run.checkpoint_every=2")
    assert read_checkpoint(tmp_path / "last.pth")["meta"]["step"] == 2
    left = [name for name in os.listdir(tmp_path) if name.endswith((".pth", ".json")) or name[0] == "."]
    assert sorted(left) == ["last.pth", "run.json"]
    assert read_record(tmp_path).step == 2  # of what was written


def test_a_class_that_one_split_lacks_is_told(write_config, tiny, tmp_path, caplog):
    short = ("schedule.length=1", "schedule.validate_every=1")
    content = json.loads(tiny.val.read_text())
    content["categories"].append({"id": 77, "name": "mauve"})
    content["annotations"][0]["category_id"] = 77
    (tmp_path / "more.json").write_text(json.dumps(content))
    path = write_config((str(tiny.val), str(tmp_path / "more.json")))
    run(path, tmp_path / "more", *short)
    assert "1 classes (mauve): the net does not know them: left out" in caplog.text
    caplog.clear()
    few = json.loads(tiny.val.read_text())
    few["categories"] = [row for row in few["categories"] if row["name"] != "blue"]
    ids = {row["id"] for row in few["categories"]}
    few["annotations"] = [row for row in few["annotations"] if row["category_id"] in ids]
    (tmp_path / "few.json").write_text(json.dumps(few))
    run(write_config((str(tiny.val), str(tmp_path / "few.json"))), tmp_path / "few", *short)
    assert "1 classes (blue): the test data lack them: they have no figures" in caplog.text
    experiment = load_experiment(load_config(path), tmp_path / "few" / "last.pth")
    evaluate(experiment)
    assert [row.name for row in experiment.metric.report.per_class] == list(experiment.classes)
    few["categories"] = [{"id": 1, "name": "mauve"}]
    few["annotations"] = [{**few["annotations"][0], "category_id": 1}]
    (tmp_path / "other.json").write_text(json.dumps(few))
    with pytest.raises(InputError, match=r"classes of the test data\n.*mauve\n.*at least one of"):
        run(write_config((str(tiny.val), str(tmp_path / "other.json"))), tmp_path / "w")
    path = write_config((str(tiny.val), str(tmp_path / "more.json")))
    chosen = "train_data.classes=('red', 'blue')"  # on purpose, for both
    run(path, tmp_path / "w", chosen, *short)
    assert read_checkpoint(tmp_path / "w" / "last.pth")["meta"]["classes"] == ["red", "blue"]


def test_a_training_set_without_objects(write_config, tiny, tmp_path):
    content = json.loads(tiny.train.read_text())
    (tmp_path / "none.json").write_text(json.dumps({**content, "annotations": []}))
    with pytest.raises(InputError, match="no boxes"):
        run(write_config((str(tiny.train), str(tmp_path / "none.json"))), tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_class_count_of_the_config(det_config, tmp_path):
    with pytest.raises(InputError, match=r"model\.num_classes\n.*4\n.*3, as the data has"):
        run(det_config, tmp_path / "w", "model.num_classes=4")


# --- other data


def test_voc(write_config, tiny, tmp_path):
    path = write_config(
        ("coco import read_coco", "voc import read_voc"),
        (
            f'read_coco, annotation_file="{tiny.train}", image_root="{tiny.images}"',
            f'read_voc, splits=[("{tiny.voc}", "train")]',
        ),
        (
            f'read_coco, annotation_file="{tiny.val}", image_root="{tiny.images}"',
            f'read_voc, splits=[("{tiny.voc}", "val")]',
        ),
        ('"coco"', '"voc07"'),
    )
    figures = run(path, tmp_path / "w")
    assert figures.keys() == {"voc/mAP", "coco/AP", "coco/AP50"}
    assert read_checkpoint(tmp_path / "w" / "last.pth")["meta"]["best"] == figures["voc/mAP"]


def test_a_published_classifier_starts_a_detector(cls_config, det_config, tmp_path):
    figures = run(cls_config, tmp_path / "cls", "schedule.length=12", "publish.statistics_images=16")
    assert figures["images"] == sum(1 for _ in cls_config.parent.glob("folders/val/*/*"))
    published = tmp_path / "cls" / "resnet18-half.safetensors"
    record = json.loads((tmp_path / "cls" / "metrics.json").read_text())
    assert (record["figures"], record["statistics_images"]) == (figures, 16)
    assert record["checkpoint"]["path"] == str(published)
    options = (f"model.init={published}", "model.frozen_stages=2", "model.frozen_batchnorm=True")
    run(det_config, tmp_path / "det", *options)
    from resdet.backbones.weights import read_weights

    state, facts = read_weights(published)
    assert (facts["backbone"], facts["classes"], facts["statistics_images"]) == (
        "resnet18-half",
        ["blue", "green", "red"],
        16,
    )
    after = weights(tmp_path / "det" / "last.pth")
    frozen = next(key for key in after if key.endswith("conv1.weight"))
    assert torch.equal(after[frozen], state["conv1.weight"])  # the stem is frozen and came from the file
    last = weights(tmp_path / "cls" / "last.pth")  # what is published unless the best one is asked for
    assert torch.equal(last["net.net.conv1.weight"], state["conv1.weight"])
    assert not torch.equal(last["net.net.bn1.running_mean"], state["bn1.running_mean"])  # computed anew


# --- starting from a trained detector


def test_load_from_takes_all_of_a_detector_of_the_same_classes(det_config, trained):
    experiment = build_experiment(load_config(det_config, ["run.seed=5"]), load_init=False)
    load_trained(experiment, str(trained / "last.pth"))
    wanted = read_checkpoint(trained / "last.pth")["state_dict"]
    for name, value in experiment.adapter.state_dict().items():
        assert torch.equal(value, wanted[name]), name


def test_load_from_leaves_the_class_layers_of_other_classes_as_they_were(write_config, tiny, trained, tmp_path):
    changes = []
    for path in (tiny.train, tiny.val):
        content = json.loads(path.read_text())
        content["categories"][0]["name"] = "mauve"
        (tmp_path / path.name).write_text(json.dumps(content))
        changes.append((str(path), str(tmp_path / path.name)))
    experiment = build_experiment(load_config(write_config(*changes), ["run.seed=5"]), load_init=False)
    before = {name: value.clone() for name, value in experiment.adapter.state_dict().items()}
    load_trained(experiment, str(trained / "last.pth"))
    wanted = read_checkpoint(trained / "last.pth")["state_dict"]
    for name, value in experiment.adapter.state_dict().items():
        own = "class_logits" in name or "box_deltas" in name
        assert torch.equal(value, (before if own else wanted)[name]), name
    assert not torch.equal(before["net.roi_head.class_logits.weight"], wanted["net.roi_head.class_logits.weight"])


def test_load_from_adds_context_to_a_detector_that_answers_as_before(det_config, trained):
    options = ["model.context=True", "run.seed=5"]
    experiment = build_experiment(load_config(det_config, options), load_init=False)
    load_trained(experiment, str(trained / "last.pth"))
    before = build_experiment(load_config(det_config, []), load_init=False)
    load_trained(before, str(trained / "last.pth"))
    image = torch.randint(0, 256, (3, 60, 70), dtype=torch.uint8)
    found, wanted = (e.adapter.net.eval().predict([image])[0] for e in (experiment, before))
    assert len(wanted.boxes)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)
    logits = experiment.adapter.net.roi_head.class_logits.weight
    images, targets = (
        [image],
        [Target(torch.tensor([[5.0, 5, 25, 25]]), torch.tensor([0]), torch.tensor([False]), 1, (60, 70))],
    )
    sum(experiment.adapter.net.train().loss(images, targets).values()).backward()
    assert logits.grad[:, logits.shape[1] // 2 :].abs().sum() > 0  # and learns to use it


def test_load_from_is_read_at_the_start_and_not_at_a_resume(write_config, trained, tmp_path):
    config = write_config(("task = ", "load_from = 'gone.pth'\ntask = "))
    with pytest.raises(InputError, match=r"gone\.pth"):
        run(config, tmp_path / "a")
    figures = run(config, tmp_path / "b", resume=str(trained / "last.pth"))
    assert "coco/AP" in figures
