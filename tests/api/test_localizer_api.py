"""``resdet.Localizer``, from checkpoints alone."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import resdet
from resdet.datasets.images import read_image
from resdet.engine.config import load_config
from resdet.engine.experiment import load_experiment
from resdet.errors import InputError


@pytest.fixture(scope="module")
def paths(tiny_loc):
    return sorted((tiny_loc.root / "Data" / "CLS-LOC" / "val").glob("*/*.png"))


@pytest.fixture(scope="module")
def localizer(tiny_loc):
    test = {"classifier_crop": 32, "top": 2, "proposals": 4}
    how = {"classifier": tiny_loc.classifier, "second": [tiny_loc.second], "test": test}
    return resdet.Localizer(tiny_loc.first, device="cpu", **how)


def test_the_answer(localizer, paths):
    answer = localizer(paths[0])
    assert answer.labels.shape == (2,) and answer.boxes.shape == (2, 4)
    with Image.open(paths[0]) as picture:
        width, height = picture.size
    assert (answer.boxes[:, :2] < answer.boxes[:, 2:]).all()
    assert (answer.boxes >= 0).all() and (answer.boxes[:, 2:] <= torch.tensor([width, height])).all()
    assert ((answer.scores >= 0) & (answer.scores <= 1)).all()
    assert localizer.classes == ("blue", "green", "red")
    (first, second) = localizer([paths[0], read_image(paths[0])])
    assert first.labels.tolist() == second.labels.tolist() == answer.labels.tolist()
    torch.testing.assert_close(first.boxes, second.boxes)
    assert localizer([]) == []


def test_classes_by_name_and_number(localizer, paths):
    one = localizer(paths[0], "red")
    assert one.labels.tolist() == [2]
    both = localizer(paths[0], ["green", 2])
    assert both.labels.tolist() == [1, 2]
    torch.testing.assert_close(both.boxes[1:], one.boxes)
    for wrong in ("mauve", 3, -1):
        with pytest.raises(InputError, match="classes"):
            localizer(paths[0], wrong)


def test_the_same_as_the_tools(tiny_loc, localizer, paths):
    options = ["test.classifier_crop=32", "test.top=2", "test.proposals=4"]
    options += [f"test.classifiers=('{tiny_loc.classifier}',)", f"test.second=('{tiny_loc.second}',)"]
    task = load_experiment(load_config(tiny_loc.config, options), tiny_loc.first).adapter
    image = torch.from_numpy(read_image(paths[1])).permute(2, 0, 1)
    (wanted,) = task._predictor[0].predict([image])
    answer = localizer(paths[1])
    assert answer.labels.tolist() == wanted.labels.tolist()
    torch.testing.assert_close(answer.boxes, wanted.boxes)


def test_drawing(localizer, paths):
    picture = localizer.draw(paths[0], localizer(paths[0]))
    assert max(picture.size) >= 480


def test_mistakes(tiny_loc, paths, trained):
    with pytest.raises(InputError, match="none given"):
        resdet.Localizer(tiny_loc.first, device="cpu")(paths[0])
    for how, words in (
        ({"test": {"vieww": "dense"}}, "view"),
        ({"test": {"sides": 40}}, "test.sides"),
        ({"test": {"sides": (20,)}}, "32 or more"),
        ({"second": tiny_loc.first}, "a second stage"),
        ({"classifier": tiny_loc.second}, "classification"),
        ({"device": "gpu9"}, "gpu9"),
    ):
        with pytest.raises(InputError, match=words):
            resdet.Localizer(tiny_loc.first, **how)
    for wrong in (tiny_loc.second, tiny_loc.classifier, trained / "last.pth", "gone.pth"):
        with pytest.raises(InputError, match=str(wrong)):
            resdet.Localizer(wrong)
