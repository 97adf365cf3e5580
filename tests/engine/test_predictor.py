from __future__ import annotations

import pytest
import torch

from resdet.engine.config import load_config
from resdet.engine.evaluate import evaluate, load_experiment, seconds_per_image
from resdet.engine.experiment import build_experiment, build_net
from resdet.engine.predictor import adopt, build_predictor, load_net, own_model
from resdet.engine.runner import read_checkpoint, write_checkpoint
from resdet.errors import InputError

CLASSES = ("blue", "green", "red")


@pytest.fixture(scope="module")
def last(trained):
    return trained / "last.pth"


def test_a_checkpoint_tells_its_net(det_config, last):
    alone = load_net(last, CLASSES).eval()
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
        (lambda model: model.pop("shorter_side"), "no description of its net"),
        (lambda model: model.update(type="os.system"), "a net made by 'os.system'"),
        (lambda model: model.update(type="resdet.detection.build.os"), "type='resdet.detection.build.os'"),
        (lambda model: model.update(rocket=1), "settings ['rocket']"),
        (lambda model: model.update(head_width=48), "mis-shaped"),
    ],
)
def test_what_a_checkpoint_may_not_tell(last, tmp_path, change, words):
    model = dict(read_checkpoint(last)["meta"]["model"])
    change(model)
    with pytest.raises(InputError) as caught:
        load_net(changed(last, tmp_path, model=model), CLASSES)
    assert words in str(caught.value)


def test_an_ensemble_of_other_classes(last, det_config):
    with pytest.raises(InputError, match=r"3 classes \(blue, green, red\)\n.*2 classes \(cat, dog\)"):
        load_net(last, ("cat", "dog"))
    config = load_config(det_config, [f"test.ensemble=({str(last)!r},)"])
    net = load_net(last, CLASSES)
    assert len(build_predictor(config, net, CLASSES).nets) == 2


def test_the_same_net_twice_is_itself(det_config, last):
    one = evaluate(load_experiment(load_config(det_config), last))
    two = evaluate(load_experiment(load_config(det_config, [f"test.ensemble=({str(last)!r},)"]), last))
    assert two == pytest.approx(one, abs=0.02)  # each region twice, and means of equals


def test_settings_reach_the_predictor_and_cost_time(det_config, last):
    config = load_config(det_config, ["test.refine=1", "test.vote=0.5", "test.scales=(48,64)", "test.nms_iou=0.3"])
    experiment = load_experiment(config, last)
    assert experiment.task.net.suppression.nms_iou == 0.3
    evaluate(experiment)
    costs = seconds_per_image(experiment)
    assert {"backbone", "proposals", "regions", "refinement", "suppression", "voting"} <= set(costs)
    assert list(costs.values()) == sorted(costs.values(), reverse=True) and min(costs.values()) >= 0
    assert experiment.task.net.images == 5


def test_a_config_that_leaves_the_net_to_the_checkpoint(det_config, write_config, last):
    text = det_config.read_text()
    model = text[text.index("model = dict(") : text.index("loader = dict(")]
    path = write_config(
        (model, "model = dict(type=from_checkpoint, max_per_image=3)\n"),
        ("from resdet.detection.build import faster_rcnn_fpn", "from resdet.engine.predictor import from_checkpoint"),
    )
    config = load_config(path)
    adopted = adopt(config, read_checkpoint(last)["meta"], last)
    assert adopted.model["head_width"] == 32 and adopted.model["max_per_image"] == 3
    experiment = load_experiment(config, last)
    assert experiment.net.suppression.max_per_image == 3
    assert evaluate(experiment).keys() == evaluate(load_experiment(load_config(det_config), last)).keys()
    with pytest.raises(InputError, match=r"type=from_checkpoint\n.*to train"):
        build_experiment(config, training=True)
    own = load_config(det_config)
    assert adopt(own, read_checkpoint(last)["meta"], last) is own


def test_own_model_needs_a_description():
    with pytest.raises(InputError, match="no description"):
        own_model({"classes": ["a"]}, "x.pth")
