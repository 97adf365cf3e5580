from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from resdet.api import Detector
from resdet.backbones.custom import define_net
from resdet.backbones.registry import BACKBONES
from resdet.cpu import winograd
from resdet.detection.build import from_checkpoint
from resdet.engine.calls import Call
from resdet.engine.checkpoints import net_calls, read_checkpoint, write_checkpoint
from resdet.engine.config import load_config
from resdet.engine.evaluate import evaluate
from resdet.engine.experiment import build_experiment, build_net, load_experiment
from resdet.engine.tasks.detection import DETECTORS, build_predictor, load_detector
from resdet.errors import InputError

CLASSES = ("blue", "green", "red")
THIN = {
    "type": "resdet.backbones.custom.define_net",
    "name": "thin",
    "stem": "imagenet",
    "stages": [["basic", 1, 8, 1], ["basic", 1, 8, 2], ["basic", 1, 8, 2], ["basic", 1, 8, 2]],
}


def adopt(config, meta, source="x.pth"):
    """What the task makes of a config that leaves its net to the checkpoint."""
    adopting = replace(config, model=Call.read({"type": from_checkpoint}, where="config", section="model"))
    return config.task.adopted(adopting, meta, source)


@pytest.fixture(scope="module")
def last(trained):
    return trained / "last.pth"


def test_a_checkpoint_tells_its_net(det_config, last):
    alone = load_detector(last, CLASSES).eval()
    config = load_config(det_config)
    net = build_net(config, num_classes=3, load_init=False)
    net.load_state_dict({k.removeprefix("net."): v for k, v in read_checkpoint(last)["state_dict"].items()})
    assert alone.preprocess.shorter_side == (64,) and alone.preprocess.longer_side == 96
    image = torch.randint(0, 256, (3, 60, 70), dtype=torch.uint8)
    for a, b in zip(alone.predict([image])[0], net.eval().predict([image])[0], strict=True):
        assert torch.equal(a, b)


def changed(last, tmp_path, **meta):
    content = read_checkpoint(last)
    content["meta"].update(meta)
    write_checkpoint(tmp_path / "changed.pth", content)
    return tmp_path / "changed.pth"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda model: model.pop("type"), "no description of its net"),
        (lambda model: model.update(rocket=1), "section 'model'\n  found:  unknown key 'rocket'"),
        (lambda model: model.update({5: 1}), "meta.model\n  found:  {"),
        (lambda model: model.update(head_width="48"), "model.head_width\n  found:  '48'\n  needed: int"),
        (lambda model: model.update(num_classes="3"), "model.num_classes\n  found:  '3'\n  needed: int"),
        (lambda model: model.pop("backbone"), "found:  no 'backbone'"),
        (lambda model: model.update(head_width=48), "mis-shaped"),
        (lambda model: model.update(define=THIN | {"rocket": 1}), "section 'backbone'\n  found:  unknown key 'rocket'"),
        (lambda model: model.update(define=THIN | {"stages": 3}), "backbone.stages\n  found:  3"),
        (lambda model: model.update(define=THIN | {"dropout": 2.0}), "changed.pth: residual_net(dropout=...)"),
        (lambda model: model.update(define=3), "section 'backbone'\n  found:  a net made by 3"),
    ],
)
def test_what_a_checkpoint_may_not_tell(last, tmp_path, change, words):
    model = dict(read_checkpoint(last)["meta"]["model"])
    change(model)
    path = changed(last, tmp_path, model=model)
    with pytest.raises(InputError) as caught:
        load_detector(path, CLASSES)
    assert words in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("place", "named"),
    [
        *(
            ("model", name)
            for name in (
                "os.system",
                "resdet.detection.build.os",
                "resdet.detection.build.Sequence",
                "resdet.convert.states.convert",
                "resdet.backbones.custom.define_net",
                "resdet.classification.build.classifier",  # builds no detector
                ["resdet.detection.build.faster_rcnn_fpn"],
                None,
            )
        ),
        ("define", "resdet.backbones.published.publish"),
        ("define", "resdet.detection.build.faster_rcnn_fpn"),
    ],
)
def test_functions_that_a_checkpoint_may_not_call(det_config, last, tmp_path, place, named):
    model = dict(read_checkpoint(last)["meta"]["model"])
    written = tmp_path / "written.safetensors"
    call = {"type": named, "path": str(written), "state": {}, "metadata": {}}
    model.update(call if place == "model" else {"define": call})
    path = changed(last, tmp_path, model=model)
    for use in (
        lambda: load_detector(path, CLASSES),
        lambda: adopt(load_config(det_config), read_checkpoint(path)["meta"], path),
    ):
        with pytest.raises(InputError) as caught:
            use()
        assert f"found:  a net made by {named!r}" in str(caught.value)
    assert not written.exists()


@pytest.mark.parametrize("change", [{"rocket": 1}, {"head_width": "48"}, {"define": THIN | {"stem": 1}}])
def test_adopting_checks_the_same(det_config, last, change):
    meta = read_checkpoint(last)["meta"]
    with pytest.raises(InputError, match=r"checkpoint x\.pth, "):
        adopt(load_config(det_config), {**meta, "model": {**meta["model"], **change}})


def test_what_a_checkpoint_may_leave_out(det_config, last, tmp_path):
    model = dict(read_checkpoint(last)["meta"]["model"])
    model.pop("num_classes", None)
    model["init"] = str(tmp_path / "missing.pth")  # a file may not have another one read
    assert load_detector(changed(last, tmp_path, model=model), CLASSES).roi_head.class_logits.out_features == 4
    adopted = adopt(load_config(det_config), {"model": model})
    assert not {"init", "num_classes"} & adopted.model.settings.model_fields_set


def test_two_files_whose_nets_differ_under_one_name(last, tmp_path, monkeypatch):
    monkeypatch.setattr(BACKBONES, "_entries", dict(BACKBONES._entries))
    define_net(**{k: v for k, v in THIN.items() if k != "type"})
    model = dict(read_checkpoint(last)["meta"]["model"])
    path = changed(last, tmp_path, model={**model, "define": THIN | {"shortcut": "C"}})
    with pytest.raises(InputError, match=r"name='thin'\)\n.*two nets: shortcut='B' and 'C'\n.*nets differ") as caught:
        load_detector(path, CLASSES)
    assert str(path) in str(caught.value)


def test_an_ensemble_of_other_classes(last, det_config):
    with pytest.raises(InputError, match=r"3 classes \(blue, green, red\)\n.*2 classes \(cat, dog\)"):
        load_detector(last, ("cat", "dog"))
    config = load_config(det_config, [f"test.ensemble=({str(last)!r},)"])
    net = load_detector(last, CLASSES)
    assert len(build_predictor(net, config.test, CLASSES).nets) == 2


def test_the_same_net_twice_is_itself(det_config, last):
    one = evaluate(load_experiment(load_config(det_config), last))
    two = evaluate(load_experiment(load_config(det_config, [f"test.ensemble=({str(last)!r},)"]), last))
    assert two == pytest.approx(one, abs=0.02)  # each region twice, and means of equals


def test_overrides_of_testing_reach_every_member(det_config, write_config, last, tmp_path):
    said = ["model.shorter_side=40", "model.test_proposals=(20,7)", "model.score_threshold=0.3", "model.init=None"]
    options = [*said, f"test.ensemble=({str(last)!r},)"]
    nets = load_experiment(load_config(det_config, options), last).adapter.net.nets
    assert [(net.preprocess.test_side, net.rpn.test_topk.post_nms) for net in nets] == [(40, 7)] * 2
    assert [net.preprocess.test_side for net in Detector(det_config, last, options=options).net.nets] == [40, 40]
    # What the config of the first says itself is of the first alone.
    text = det_config.read_text()
    smaller = write_config(("shorter_side=64", "shorter_side=48"))
    ensemble = [f"test.ensemble=({str(last)!r},)"]
    nets = load_experiment(load_config(smaller, ensemble), last).adapter.net.nets
    assert [net.preprocess.test_side for net in nets] == [48, 64]
    # Unless that config leaves all nets to their checkpoints.
    model = text[text.index("model = dict(") : text.index("loader = dict(")]
    adopting = write_config(
        (model, "model = dict(type=from_checkpoint, shorter_side=56)\n"),
        ("from resdet.detection.build import faster_rcnn_fpn", "from resdet.detection.build import from_checkpoint"),
    )
    nets = load_experiment(load_config(adopting, ensemble), last).adapter.net.nets
    assert [net.preprocess.test_side for net in nets] == [56, 56]
    with pytest.raises(InputError, match=rf"{last}, section 'model'\n  found:  unknown key 'rocket'"):
        load_detector(last, CLASSES, {"rocket": 1})


def test_settings_reach_the_predictor_and_cost_time(det_config, last):
    config = load_config(det_config, ["test.refine=1", "test.vote=0.5", "test.scales=(48,64)", "test.nms_iou=0.3"])
    experiment = load_experiment(config, last)
    assert experiment.adapter.net.suppression.nms_iou == 0.3
    evaluate(experiment)
    costs = experiment.adapter.net.seconds_per_image()
    assert {"backbone", "proposals", "regions", "refinement", "suppression", "voting"} <= set(costs)
    assert list(costs.values()) == sorted(costs.values(), reverse=True) and min(costs.values()) >= 0
    assert experiment.adapter.net.images == 5


def test_a_config_that_leaves_the_net_to_the_checkpoint(det_config, write_config, last):
    text = det_config.read_text()
    model = text[text.index("model = dict(") : text.index("loader = dict(")]
    path = write_config(
        (model, "model = dict(type=from_checkpoint, max_per_image=3)\n"),
        ("from resdet.detection.build import faster_rcnn_fpn", "from resdet.detection.build import from_checkpoint"),
    )
    config = load_config(path)
    adopted = config.task.adopted(config, read_checkpoint(last)["meta"], last).model.settings
    assert adopted.head_width == 32 and adopted.max_per_image == 3
    experiment = load_experiment(config, last)
    assert experiment.net.suppression.max_per_image == 3
    assert evaluate(experiment).keys() == evaluate(load_experiment(load_config(det_config), last)).keys()
    with pytest.raises(InputError, match=r"type=from_checkpoint\n.*to train"):
        build_experiment(config, load_init=False)
    own = load_config(det_config)
    assert own.task.adopted(own, read_checkpoint(last)["meta"], last) is own


def test_a_net_needs_a_description():
    with pytest.raises(InputError, match="no description"):
        net_calls({"classes": ["a"]}, DETECTORS, "x.pth")
    with pytest.raises(InputError, match="no description"):
        net_calls({"model": ["shorter_side"]}, DETECTORS, "x.pth")


def test_other_ways_to_compute_the_same(det_config, last, monkeypatch):
    monkeypatch.setattr(winograd, "LEAST_CHANNELS", 16)
    compiled, real = [], torch.compile

    def without_a_compiler(function, *arguments, **settings):
        compiled.append(settings)
        return real(function, backend="eager")

    monkeypatch.setattr(torch, "compile", without_a_compiler)
    image = torch.randint(0, 256, (3, 60, 70), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    answers = []
    for options in ([], ["test.winograd=True"], ["test.compile=reduce-overhead"]):
        predictor = build_predictor(load_detector(last, CLASSES), load_config(det_config, options).test, CLASSES).eval()
        used = [type(m).__name__ for m in predictor.modules()]
        assert ("WinogradConv" in used) is ("test.winograd=True" in options)
        answers.append(predictor.predict([image])[0])
    assert [c["mode"] for c in compiled] == ["reduce-overhead"] * 4
    for other in answers[1:]:
        torch.testing.assert_close(other.boxes, answers[0].boxes, rtol=0, atol=0.05)
        torch.testing.assert_close(other.scores, answers[0].scores, rtol=0, atol=1e-3)
