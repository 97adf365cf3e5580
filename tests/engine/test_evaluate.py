from __future__ import annotations

import json

import pytest
import torch

from resdet.engine.checkpoints import read_checkpoint
from resdet.engine.config import load_config
from resdet.engine.evaluate import evaluate, evaluate_detections
from resdet.engine.experiment import load_experiment
from resdet.engine.train import train
from resdet.errors import InputError


def test_the_figures_are_those_of_the_run(det_config, trained):
    experiment = load_experiment(load_config(det_config), trained / "last.pth")
    assert experiment.train_set is None
    assert not experiment.adapter.training or evaluate(experiment)
    figures = evaluate(experiment)
    assert figures == pytest.approx(read_checkpoint(trained / "last.pth")["meta"]["figures"], abs=1e-9)
    assert not experiment.adapter.training
    assert evaluate(experiment) == figures  # nothing is kept from one evaluation to the next


@pytest.mark.parametrize("option", ["loader.test_batch_size=1", "loader.test_batch_size=5", "loader.workers=1"])
def test_how_it_is_loaded_does_not_matter(det_config, trained, option):
    figures = evaluate(load_experiment(load_config(det_config, [option]), trained / "last.pth"))
    # Padding to another size moves sums of convolutions in the last bits.
    assert figures == pytest.approx(read_checkpoint(trained / "last.pth")["meta"]["figures"], abs=0.02)


def test_init_is_not_needed_to_evaluate(det_config, trained):
    config = load_config(det_config, ["model.init=no_longer_here.safetensors"])
    assert load_experiment(config, trained / "last.pth").classes == ("blue", "green", "red")


def test_bf16(det_config, trained):
    experiment = load_experiment(load_config(det_config, ["run.amp=bf16"]), trained / "last.pth")
    seen = []
    experiment.net.roi_head.class_logits.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    evaluate(experiment)
    assert set(seen) == {torch.bfloat16}


def test_classification(cls_config, tmp_path):
    train(load_config(cls_config), work_dir=tmp_path)
    figures = evaluate(load_experiment(load_config(cls_config), tmp_path / "last.pth"))
    assert figures == read_checkpoint(tmp_path / "last.pth")["meta"]["figures"]


def refuse(config, checkpoint, *options):
    with pytest.raises(InputError) as caught:
        load_experiment(load_config(config, options), checkpoint)
    return str(caught.value)


def test_checkpoints_that_do_not_fit(det_config, cls_config, write_config, tiny, trained, tmp_path, caplog):
    last = trained / "last.pth"
    assert "trained with model.head_width=32" in refuse(det_config, last, "model.head_width=48")
    assert "model.backbone=resnet18-half" in refuse(det_config, last, "model.backbone=resnet18")
    assert "model.half_pixel=True" in refuse(det_config, last, "model.half_pixel=False")  # the weights would load
    assert "a net of detection" in refuse(cls_config, last)
    content = json.loads(tiny.val.read_text())
    for change in ("more", "fewer", "renamed"):
        categories = [dict(row) for row in content["categories"]]
        annotations = content["annotations"]
        if change == "more":
            categories.append({"id": 77, "name": "mauve"})
        elif change == "fewer":
            categories.pop()
            annotations = [row for row in annotations if row["category_id"] != 9]
        else:
            categories[0]["name"] = "mauve"
        path = tmp_path / f"{change}.json"
        path.write_text(json.dumps({**content, "categories": categories, "annotations": annotations}))
        config = write_config((str(tiny.val), str(path)), name=f"{change}.py")
        caplog.clear()
        experiment = load_experiment(load_config(config), last)
        told = {"more": ["(mauve): the net does not"], "fewer": ["(red): the test data lack"]}
        told["renamed"] = ["(mauve): the net does not", "(blue): the test data lack"]
        assert len(caplog.messages) == len(told[change]), caplog.messages
        assert all(words in message for words, message in zip(told[change], caplog.messages, strict=True))
        assert evaluate(experiment)["coco/AP"] >= 0


def test_the_truth_as_a_results_file(det_config, tiny):
    figures, metric = evaluate_detections(load_config(det_config), tiny.val)
    assert figures["coco/AP"] == pytest.approx(1.0)
    assert [row.name for row in metric.report.per_class] == ["blue", "green", "red"]


def test_a_results_file_needs_a_detection_config(cls_config, tiny):
    with pytest.raises(InputError, match="a detection config"):
        evaluate_detections(load_config(cls_config), tiny.val)


def test_a_checkpoint_of_another_task(cls_config, trained):
    with pytest.raises(InputError, match=r"found:  a net of detection\n  needed: one of classification"):
        load_experiment(load_config(cls_config), trained / "last.pth")
