"""Localizers in the engine: both stages trained, resumed, evaluated, and refused where they do not fit."""

from __future__ import annotations

import itertools
import json
import pickle
import textwrap

import numpy as np
import pytest
import torch
from test_distributed import ROOT, finish, losses, run_two, start
from test_train import assert_identical

from resdet import cli
from resdet.backbones.weights import read_weights
from resdet.engine import distributed, proposals
from resdet.engine.checkpoints import read_checkpoint
from resdet.engine.config import load_config
from resdet.engine.evaluate import evaluate
from resdet.engine.experiment import build_experiment, load_experiment
from resdet.engine.hooks import StepSeed
from resdet.engine.metrics import LocalizationMetric
from resdet.engine.proposals import StoredProposals, training_proposals
from resdet.engine.tasks.localization import first_stage, load_stage
from resdet.engine.train import load_trained, train
from resdet.errors import InputError
from resdet.localization.localizer import PerClassLocalizer
from resdet.localization.region_localizer import RegionLocalizer
from resdet.localization.system import localize, propose
from resdet.structures import Localizations, Target

CLASSIFIER_VIEW = ("test.classifier_crop=32",)


def run(config, work_dir, *options, **how):
    return train(load_config(config, options), work_dir=work_dir, **how)


def figures_of(config, checkpoint, *options):
    return evaluate(load_experiment(load_config(config, options), checkpoint))


def refused(call, *arguments, **named) -> str:
    with pytest.raises(InputError) as caught:
        call(*arguments, **named)
    return str(caught.value)


# --- a run


def test_what_the_runs_leave(tiny_loc):
    for checkpoint, kind in ((tiny_loc.first, PerClassLocalizer), (tiny_loc.second, RegionLocalizer)):
        meta = read_checkpoint(checkpoint)["meta"]
        assert (meta["step"], meta["task"], meta["classes"]) == (6, "localization", ["blue", "green", "red"])
        assert meta["best"] == meta["figures"]["loc/right"] == 1 - meta["figures"]["loc/gt_class_error"]
        assert meta["figures"]["images"] == 5
        assert isinstance(load_stage(checkpoint, meta["classes"], kind), kind)
        assert json.loads((checkpoint.parent / "metrics.json").read_text())["figures"] == meta["figures"]
    # A second stage is saved alone: the first one has a file of its own.
    assert not [name for name in read_checkpoint(tiny_loc.second)["state_dict"] if "rpn" in name]


@pytest.mark.parametrize("stage", ["first", "second"])
def test_the_figures_are_those_of_the_run(tiny_loc, stage):
    config = {"first": tiny_loc.config, "second": tiny_loc.second_config}[stage]
    checkpoint = getattr(tiny_loc, stage)
    experiment = load_experiment(load_config(config), checkpoint)
    figures = evaluate(experiment)
    assert figures == read_checkpoint(checkpoint)["meta"]["figures"]
    assert evaluate(experiment) == figures  # nothing is kept from one evaluation to the next


def test_losses_fall(tiny_loc, tmp_path):
    options = ("schedule.length=40", "schedule.milestones=()", "schedule.validate_every=40")
    run(tiny_loc.config, tmp_path, *options)
    (log,) = tmp_path.glob("*/vis_data/scalars.json")
    rows = [row for row in map(json.loads, log.read_text().splitlines()) if "loss" in row]
    losses = [row["loss_rpn_objectness"] for row in rows]  # a few boxes a batch: their loss is too noisy
    assert len(losses) == 40
    assert sum(losses[-8:]) < 0.7 * sum(losses[:8])


@pytest.mark.parametrize("stage", ["first", "second"])
def test_a_resumed_run_is_the_same(tiny_loc, tmp_path, monkeypatch, stage):
    config = {"first": tiny_loc.config, "second": tiny_loc.second_config}[stage]
    original = StepSeed.before_train_iter

    def interrupted(self, runner, *args, **kwargs):
        if runner.iter == 4:
            monkeypatch.setattr(StepSeed, "before_train_iter", original)
            raise KeyboardInterrupt
        original(self, runner, *args, **kwargs)

    monkeypatch.setattr(StepSeed, "before_train_iter", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path, "run.checkpoint_every=3")
    assert read_checkpoint(tmp_path / "last.pth")["meta"]["step"] == 3
    run(config, tmp_path, "run.checkpoint_every=3", resume="auto")
    parts, whole = (read_checkpoint(path) for path in (tmp_path / "last.pth", getattr(tiny_loc, stage)))
    for checkpoint in (parts, whole):
        del checkpoint["meta"]["config"]  # which tells checkpoint_every
    assert_identical(parts, whole)


def test_published_weights_start_both_stages(tiny_loc):
    published = tiny_loc.classifier.parent / "resnet18-half.safetensors"
    state, _ = read_weights(published)
    for config, name in ((tiny_loc.config, "backbone"), (tiny_loc.second_config, "net")):
        options = [f"model.init={published}", "model.frozen_batchnorm=True"]
        net = build_experiment(load_config(config, options), load_init=True).net
        loaded = {k: v for k, v in net.state_dict().items() if k.endswith("conv1.weight") and name in k}
        assert any(torch.equal(value, state["conv1.weight"]) for value in loaded.values())


def test_load_from_leaves_the_layers_of_other_classes(tiny_loc):
    experiment = build_experiment(load_config(tiny_loc.config, ["run.seed=3"]), load_init=False)
    load_trained(experiment, str(tiny_loc.first))
    wanted = read_checkpoint(tiny_loc.first)["state_dict"]
    assert all(torch.equal(value, wanted[name]) for name, value in experiment.adapter.state_dict().items())
    fewer = ["train_data.classes=('green','red')", "test_data.classes=('green','red')"]
    for config, checkpoint in ((tiny_loc.config, tiny_loc.first), (tiny_loc.second_config, tiny_loc.second)):
        options = [*fewer, f"regions.first={_of_two(tiny_loc)}"] if checkpoint == tiny_loc.second else fewer
        experiment = build_experiment(load_config(config, options), load_init=False)
        load_trained(experiment, str(checkpoint))
        wanted = read_checkpoint(checkpoint)["state_dict"]
        state = experiment.adapter.state_dict()
        other = {name for name, value in state.items() if value.shape != wanted[name].shape}
        assert other and all(torch.equal(v, wanted[name]) for name, v in state.items() if name not in other)


def _of_two(tiny_loc):
    """A checkpoint of a first stage of two classes."""
    path = tiny_loc.root / "two" / "last.pth"
    if not path.exists():
        fewer = ["train_data.classes=('green','red')", "test_data.classes=('green','red')"]
        run(tiny_loc.config, path.parent, *fewer, "schedule.length=1", "schedule.milestones=()")
    return path


# --- proposals


def data_of(tiny_loc):
    return build_experiment(load_config(tiny_loc.second_config), load_init=False).train_set


def stored(config, data):
    return training_proposals(config, first_stage(config.regions.first, data.classes), data)


def test_the_proposals_are_those_of_the_net(tiny_loc):
    data = data_of(tiny_loc)
    assert len(data.proposals) == len(data) == 8
    config = load_config(tiny_loc.second_config)
    settings = config.test
    net = load_stage(tiny_loc.first, data.classes, PerClassLocalizer).eval()
    for index in range(8):  # in batches of two, of different sizes
        image, target = super(type(data), data).__getitem__(index)
        (wanted,) = propose([image], classes=[target.labels[:1]], first=[net], settings=settings)
        assert wanted.boxes.shape == (1, 6, 4)
        torch.testing.assert_close(torch.tensor(data.proposals[index]), wanted.boxes[0], atol=1e-3, rtol=0)


def test_proposals_are_computed_once_and_a_stopped_run_goes_on(tiny_loc, tmp_path, monkeypatch):
    first = tmp_path / "last.pth"
    first.write_bytes(tiny_loc.first.read_bytes())
    config = load_config(tiny_loc.second_config, [f"regions.first={first}"])
    data = data_of(tiny_loc).annotations
    monkeypatch.setattr(proposals, "SHARD", 3)
    whole = stored(config, data)
    (folder,) = tmp_path.glob("proposals_*")
    files = sorted(folder.iterdir())
    assert [path.name for path in files] == ["000000.npy", "000001.npy", "000002.npy"]  # 3 + 3 + 2 images
    assert [np.load(path).shape for path in files] == [(3, 6, 4), (3, 6, 4), (2, 6, 4)]
    before = [whole[index].copy() for index in range(8)]
    files[1].unlink()
    calls = []
    monkeypatch.setattr(proposals, "propose", lambda *a, **k: (calls.append(len(a[0])), propose(*a, **k))[1])
    again = stored(config, data)
    assert sum(calls) == 3  # the images of the file that was missing
    assert all(np.array_equal(again[index], boxes) for index, boxes in enumerate(before))
    stored(config, data)
    assert sum(calls) == 3
    other = load_config(tiny_loc.second_config, [f"regions.first={first}", "test.proposals=4"])
    assert stored(other, data)[7].shape == (4, 4)  # other settings: another folder
    assert len(list(tmp_path.glob("proposals_*"))) == 2
    with pytest.raises(IndexError):
        whole[8]


def test_damaged_proposals(tmp_path):
    path = tmp_path / "000000.npy"
    for content in (b"", b"nothing", b"\x93NUMPY\x01\x00"):
        path.write_bytes(content)
        assert "delete the file" in refused(StoredProposals, [path], 2)
    np.save(path, np.zeros((3, 6, 4), np.float32))
    assert "an array (3, 6, 4)" in refused(StoredProposals, [path], 2)


def test_proposals_travel_as_paths(tmp_path):
    boxes = np.random.default_rng(0).random((256, 50, 4), np.float32)
    for number in range(2):
        np.save(tmp_path / f"{number}.npy", boxes + number)
    stored = StoredProposals([tmp_path / "0.npy", tmp_path / "1.npy"], 512)
    sent = pickle.dumps(stored)
    assert len(sent) < 1000  # and not the 400 KB of the boxes
    arrived = pickle.loads(sent)
    assert not arrived._mapped and np.array_equal(arrived[300], boxes[44] + 1)
    assert list(arrived._mapped) == [1] and isinstance(arrived._mapped[1], np.memmap)
    assert len(stored) == len(arrived) == 512


def test_a_folder_that_cannot_be_made(tiny_loc, tmp_path, monkeypatch):
    first = tmp_path / "last.pth"
    first.write_bytes(tiny_loc.first.read_bytes())
    monkeypatch.setattr(proposals, "_identity", lambda *arguments: "x")
    (tmp_path / "proposals_x").write_text("a file")
    config = load_config(tiny_loc.second_config, [f"regions.first={first}"])
    message = refused(stored, config, data_of(tiny_loc).annotations)
    assert "proposals_x" in message and "File exists" in message


# --- evaluation


def test_predicted_classes_ensembles_and_the_second_stage(tiny_loc):
    named = (*CLASSIFIER_VIEW, "test.classifier_sides=(36,)", f"test.classifiers=('{tiny_loc.classifier}',)")
    figures = figures_of(tiny_loc.config, tiny_loc.first, *named)
    assert figures.keys() == {"loc/top1_error", "cls/top1_error", "images", "loc/right"}
    classifier = evaluate(load_experiment(load_config(tiny_loc.cls_config), tiny_loc.classifier))
    assert figures["cls/top1_error"] == classifier["top1_error"]  # the same view: 36 pixels, its centre 32
    assert figures["loc/top1_error"] >= figures["cls/top1_error"]
    # A first stage with a second beside it, and that second stage with its own first: the same system.
    second = f"test.second=('{tiny_loc.second}',)"
    same = ("test.view=dense", "test.sides=(40,)", "test.proposals=6")
    figures = figures_of(tiny_loc.config, tiny_loc.first, second, *same)
    assert figures == figures_of(tiny_loc.second_config, tiny_loc.second)


@pytest.mark.parametrize("setting", ["ensemble", "second", "classifiers"])
def test_further_nets_are_asked(tiny_loc, other_loc, setting):
    # Beside the net: another one changes the boxes or classes, and its own copy does not.
    name = {"ensemble": "first", "second": "second", "classifiers": "classifier"}[setting]
    own, image = getattr(tiny_loc, name), data_of(tiny_loc)[0][0]

    def answer(*paths):
        start = [f"test.classifiers=('{tiny_loc.classifier}',)"]
        if setting != "ensemble":  # whose scores a second stage would hide
            start.append(f"test.second=('{tiny_loc.second}',)")
        said = "".join(f"'{path}'," for path in paths)
        options = [*CLASSIFIER_VIEW, "test.proposals=6", *start, f"test.{setting}=({said})"]
        predictor = load_experiment(load_config(tiny_loc.config, options), tiny_loc.first).adapter._predictor[0]
        if setting == "classifiers":
            return predictor.classifier.predict(image[None, :, :32, :32]).log_softmax(1)
        return predictor.predict([image], [torch.arange(3)])[0].scores

    beside = () if setting == "ensemble" else (own,)  # the net under test is a first stage
    alone = answer(*beside)
    torch.testing.assert_close(answer(*beside, own), alone)
    assert (answer(*beside, getattr(other_loc, name)) - alone).abs().max() > 1e-3


def test_both_stages_of_an_evaluation_count(tiny_loc, other_loc):
    # The second stage of a config is the net under test: its own boxes are told, not the first one's.
    config, image = load_config(tiny_loc.second_config), data_of(tiny_loc)[0][0]
    boxes = []
    for path in (tiny_loc.second, other_loc.second):
        task = load_experiment(config, path).adapter
        boxes.append(task._predictor[0].predict([image], [torch.tensor([0])])[0].boxes)
    first = load_stage(tiny_loc.first, ("blue", "green", "red"), PerClassLocalizer).eval()
    settings = task._predictor[0].settings
    boxes.append(localize([image], classes=[torch.tensor([0])], first=[first], settings=settings)[0].boxes)
    for one, other in itertools.combinations(boxes, 2):
        assert (one - other).abs().max() > 0.01


def test_flags(tiny_loc, tmp_path, capsys):
    out = tmp_path / "eval.json"
    flags = ["--classifier", tiny_loc.classifier, "--second", tiny_loc.second, "--ensemble", tiny_loc.first]
    flags += ["--dense", 40, 48, "--out", out, "--cfg-options", *CLASSIFIER_VIEW, "test.proposals=3"]
    cli.evaluate([str(word) for word in (tiny_loc.config, tiny_loc.first, *flags)])
    assert "loc/top1_error" in capsys.readouterr().out
    record = json.loads(out.read_text())
    assert {"loc/top1_error", "cls/top1_error"} <= record["figures"].keys()
    assert "view='dense'" in record["config"]["text"] and "40,\n" in record["config"]["text"]
    assert len(record["checkpoint"]["sha256"]) == 64


def test_the_metric_counts():
    # Two images of class 1: the first box covers the truth, the second a third of it.
    metric = LocalizationMetric(("a", "b"))
    truth = torch.tensor([[0.0, 0, 9, 9]])
    target = Target(truth, torch.tensor([1]), torch.tensor([False]), 7, (20, 20))
    metric.process(None, [(truth[0], None, target), (torch.tensor([0.0, 0, 3, 9]), None, target)])
    assert metric.evaluate(2) == {"loc/gt_class_error": 0.5, "images": 2, "loc/right": 0.5}
    pairs = Localizations(torch.tensor([0, 1]), truth.expand(2, 4), torch.ones(2))
    metric.process(None, [(None, pairs, target)])  # of two classes there is no top-5: the first pair counts
    figures = metric.evaluate(1)
    assert (figures["loc/top1_error"], figures["cls/top1_error"]) == (1, 1)
    metric.process(None, [(truth[0], None, target)])
    with pytest.raises(RuntimeError, match="1 of 2 images"):
        metric.evaluate(2)


@pytest.mark.parametrize(("pairs", "classes", "ks"), [(1, 10, {1}), (3, 10, {1, 3}), (7, 10, {1, 5}), (5, 5, {1})])
def test_the_metric_names_what_was_looked_at(pairs, classes, ks):
    # The class of the image comes second, or not at all: the first of k pairs is wrong, k pairs are right from two on.
    truth = torch.tensor([[0.0, 0, 9, 9]])
    target = Target(truth, torch.tensor([1]), torch.tensor([False]), 7, (20, 20))
    metric = LocalizationMetric([str(number) for number in range(classes)])
    for _ in range(2):  # nothing is kept from one evaluation to the next
        answer = Localizations(torch.arange(pairs), truth.expand(pairs, 4), torch.ones(pairs))
        metric.process(None, [(None, answer, target)])
        figures = metric.evaluate(1)
        wanted = {f"{kind}/top{k}_error": float(k == 1) for kind in ("loc", "cls") for k in ks}
        assert figures == {**wanted, "images": 1, "loc/right": float(len(ks) == 2)}
    metric.process(None, [(truth[0], None, target)])
    assert metric.evaluate(1) == {"loc/gt_class_error": 0, "images": 1, "loc/right": 1}


# --- several processes

TWO = """
    import sys
    from resdet.cli import evaluate
    from resdet.engine import distributed, proposals
    from resdet.engine.config import load_config

    distributed.start("mpi")
    proposals.SHARD, propose, seen = 3, proposals.propose, []
    proposals.propose = lambda images, **how: (seen.append(len(images)), propose(images, **how))[1]
    config = load_config(sys.argv[1], [f"regions.first={sys.argv[2]}"])
    config.task.training_data(config)
    print("proposed", sum(seen))
    evaluate(sys.argv[3:])
"""


def test_two_processes(tiny_loc, tmp_path, monkeypatch):
    (tmp_path / "two.py").write_text(textwrap.dedent(TWO))
    first = tmp_path / "last.pth"
    first.write_bytes(tiny_loc.first.read_bytes())
    named = ["--classifier", tiny_loc.classifier, "--cfg-options", *CLASSIFIER_VIEW]
    arguments = [tiny_loc.second_config, first, tiny_loc.second_config, tiny_loc.second, "--out", "two.json", *named]
    outputs = run_two([tmp_path / "two.py", *arguments], tmp_path, distributed.VARIABLES["mpi"])
    assert ["proposed 5" in outputs[0], "proposed 3" in outputs[1]] == [True, True]  # 3 + 2 and 3 of 8 images
    (of_two,) = tmp_path.glob("proposals_*")
    alone = tmp_path / "alone" / "last.pth"
    alone.parent.mkdir()
    alone.write_bytes(tiny_loc.first.read_bytes())
    data = data_of(tiny_loc).annotations
    monkeypatch.setattr(proposals, "SHARD", 3)
    stored(load_config(tiny_loc.second_config, [f"regions.first={alone}"]), data)
    (of_one,) = alone.parent.glob("proposals_*")
    assert of_one.name == of_two.name
    for path in of_one.iterdir():
        assert np.array_equal(np.load(path), np.load(of_two / path.name))
    options = (*CLASSIFIER_VIEW, f"test.classifiers=('{tiny_loc.classifier}',)")
    figures = figures_of(tiny_loc.second_config, tiny_loc.second, *options)
    assert json.loads((tmp_path / "two.json").read_text())["figures"] == pytest.approx(figures, abs=1e-12)


def test_training_in_two_processes(tiny_loc, tmp_path):
    # What a second stage learns from is drawn from the keys of its images, so the losses are those of one process.
    start_from = f"model.init={tiny_loc.classifier.parent / 'resnet18-half.safetensors'}"
    tool, frozen = ROOT / "tools" / "train_loc.py", ["--cfg-options", "model.frozen_batchnorm=True", start_from]
    second = [tool, tiny_loc.second_config, *frozen, "--work-dir"]
    one = start([*second, "one"], processes=1, cwd=tmp_path)
    two = start([*second, "two", "--launcher", "pytorch"], processes=2, cwd=tmp_path)
    outputs = [finish(process) for process in (one, two)]
    assert ["2 process(es)" in output for output in outputs] == [False, True]
    a, b = (losses(tmp_path / name) for name in ("one", "two"))
    assert len(a) == 6 and b == pytest.approx(a, rel=2e-4)
    states = (read_checkpoint(tmp_path / name / "last.pth")["state_dict"] for name in ("one", "two"))
    torch.testing.assert_close(*states, atol=2e-4, rtol=2e-3)
    short = ["--work-dir", "first", "--launcher", "pytorch", *frozen, "schedule.length=2", "schedule.milestones=()"]
    finish(start([tool, tiny_loc.config, *short], processes=2, cwd=tmp_path))  # draws anchors by process
    assert read_checkpoint(tmp_path / "first" / "last.pth")["meta"]["figures"]["images"] == 5


# --- what does not fit


def test_checkpoints_that_do_not_fit(tiny_loc, cls_config, trained):
    message = refused(figures_of, tiny_loc.config, tiny_loc.classifier)
    assert "a net of classification" in message and "one of localization" in message
    assert "region_localizer" in refused(figures_of, tiny_loc.config, tiny_loc.second)
    assert "trained with model.crop=32" in refused(figures_of, tiny_loc.config, tiny_loc.first, "model.crop=40")
    assert "model.num_classes" in refused(figures_of, tiny_loc.config, tiny_loc.first, "model.num_classes=4")
    for setting, wrong, words in (
        ("second", tiny_loc.first, ["a first stage", "a second stage"]),
        ("ensemble", tiny_loc.second, ["a second stage", "a first stage"]),
        ("second", trained / "last.pth", ["task 'detection'", "localization"]),
        ("classifiers", tiny_loc.first, ["task 'localization'", "classification"]),
        ("second", tiny_loc.root / "gone.pth", ["gone.pth", "no such file"]),
        ("ensemble", _of_two(tiny_loc), ["2 classes (green, red)", "3 classes"]),
    ):
        message = refused(figures_of, tiny_loc.config, tiny_loc.first, f"test.{setting}=('{wrong}',)")
        assert all(word in message for word in words), message
    fewer = ["train_data.classes=('green','red')", "test_data.classes=('green','red')"]
    two = ["test.classifiers=" + repr((str(tiny_loc.classifier),)), "test.second=" + repr((str(tiny_loc.second),))]
    for other in two:
        assert "3 classes (blue, green, red)" in refused(figures_of, tiny_loc.config, _of_two(tiny_loc), *fewer, other)


def test_second_stages_without_a_first(tiny_loc, tmp_path):
    config, out = tiny_loc.second_config, tmp_path / "w"
    assert "regions.first\n  found:  nothing" in refused(run, config, out, "regions.first=''")
    gone = refused(run, config, out, "regions.first=gone.pth")
    assert "gone.pth" in gone and "no such file" in gone
    assert "a second stage" in refused(run, config, out, f"regions.first={tiny_loc.second}")
    assert "2 classes" in refused(run, config, out, f"regions.first={_of_two(tiny_loc)}")
    assert "no such file" in refused(figures_of, config, tiny_loc.second, "regions.first=gone.pth")
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["metric=coco"], ["metric = 'coco'", "localization"]),
        (["augmentation=('flip',)"], ["augmentation", "a detection config"]),
        (["regions.per_image=2"], ["section 'regions'", "of a second stage"]),
        (["crop.shorter_side=(20,48)"], ["crop = 32", "shorter side = 20"]),
        (["crop.flip=2.0"], ["crop.flip", "[0, 1]"]),
        (["test.sides=(20,)"], ["test.sides", "32 or more"]),
        (["test.view=center"], ["test.view", "centre"]),
        (["test.classifier_view=center"], ["test.classifier_view", "'centre'"]),
        (["test.refine=1"], ["refine"]),
    ],
)
def test_settings_that_do_not_fit(tiny_loc, tmp_path, options, words):
    def both():
        figures_of(tiny_loc.config, tiny_loc.first, *options)
        run(tiny_loc.config, tmp_path / "w", *options)

    message = refused(both)
    assert all(word in message for word in words), message
    assert not (tmp_path / "w").exists()


def test_sections_of_other_tasks(det_config, tiny_loc, tmp_path):
    path = tmp_path / "changed.py"
    path.write_text(det_config.read_text() + "crop = dict(flip=0.0)\n")
    assert "a localization config" in refused(load_config, path)
    text = tiny_loc.second_config.read_text()
    assert "del crop\n" in text
    (tiny_loc.root / "with_crop.py").write_text(text.replace("del crop\n", ""))
    message = refused(run, tiny_loc.root / "with_crop.py", tmp_path / "w")
    assert "section 'crop'" in message and "of a first stage" in message
    path.write_text(
        tiny_loc.cls_config.read_text()
        .replace('"classification"', '"localization"')
        .replace(
            "resdet.classification.build import classifier", "resdet.localization.build import per_class_rpn_localizer"
        )
        .replace("type=classifier", "type=per_class_rpn_localizer")
    )
    assert "data without boxes" in refused(run, path, tmp_path / "w")
