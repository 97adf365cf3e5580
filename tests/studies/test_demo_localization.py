"""The table of the localization demo; its trainings are the tools' own and tested there."""

from __future__ import annotations

import pytest
from PIL import Image

import resdet
from resdet.cli.commands import commands
from resdet.datasets.detection import DetectionDataset
from resdet.datasets.imagenet_loc import read_imagenet_loc
from resdet.engine import experiment as evaluation
from resdet.engine.checkpoints import read_checkpoint
from resdet.engine.config import load_config
from resdet.errors import InputError
from resdet.studies.demo import draw_answers
from resdet.studies.demo_localization import Nets, Row, as_markdown, measure


def test_every_row_once(tiny_loc, other_loc, monkeypatch):
    config = load_config(tiny_loc.config, ["test.classifier_crop=32", "test.proposals=3"])
    first, second, classifier = map(str, (tiny_loc.first, tiny_loc.second, tiny_loc.classifier))
    rows = measure(config, Nets([first, first], [second, second], [classifier]), sides=(32, 48))
    assert [row.paper for row in rows] == [13.3, 11.7, None, 14.4, 10.6, 8.9]
    assert rows[0].figures == read_checkpoint(first)["meta"]["figures"]  # the centre crop, as in training
    assert rows[4].figures == rows[5].figures  # a net beside itself changes nothing
    assert rows[3].error == 100 * rows[3].figures["loc/top1_error"]  # of three classes there is no top-5
    assert [row.paper for row in measure(config, Nets([first]), sides=(32,))] == [13.3, 11.7]
    asked, load = [], evaluation.load_experiment
    monkeypatch.setattr(evaluation, "load_experiment", lambda c, path: (asked.append((c.test, path)), load(c, path))[1])
    others = tuple(map(str, (other_loc.first, other_loc.second, other_loc.classifier)))
    measure(config, Nets(*zip((first, second, classifier), others, strict=True)), sides=(32,))
    assert [path for _, path in asked] == [first] * 6
    tests = [test for test, _ in asked]
    assert [test.second for test in tests] == [(), (), (second,), (), (second,), (second, others[1])]
    assert [test.ensemble for test in tests] == [()] * 5 + [(others[0],)]
    assert [test.classifiers for test in tests[:3]] == [()] * 3
    assert [test.classifiers for test in tests[3:]] == [(classifier,)] * 2 + [(classifier, others[2])]
    with pytest.raises(InputError, match="a second stage"):
        measure(config, Nets([first], [first]), sides=(32,))


def test_the_table():
    rows = [
        Row("centre", 13.3, 20.0, {"loc/gt_class_error": 0.2}, 1.0),
        Row("dense", 11.7, 18.5, {"loc/gt_class_error": 0.185}, 2.0),
        Row("predicted", 14.4, 25.0, {"loc/top5_error": 0.25, "loc/top1_error": 0.5, "cls/top5_error": 0.1}, 3.0),
        Row("regions", 10.6, 21.0, {"loc/top5_error": 0.21, "loc/top1_error": 0.4, "cls/top5_error": 0.1}, 4.0),
    ]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in as_markdown(rows).splitlines()]
    assert len({len(line) for line in cells}) == 1
    assert cells[2][:2] == ["VGG-16, centre crop, true class", "33.1"]
    assert cells[3][1:4] == ["13.3", "20.0", ""]
    assert cells[4][1:4] == ["11.7", "18.5", "-1.5 (-1.6)"]
    assert cells[5][1:] == ["14.4", "25.0", "", "50.0", "10.0", "3"]  # another kind of figure: no change
    assert cells[6][3] == "-4.0 (-3.8)"


def test_draws_the_first_answers(tiny_loc, tmp_path, monkeypatch):
    drawn = []
    localizer = resdet.Localizer(tiny_loc.first, classifier=tiny_loc.classifier, test={"classifier_crop": 32})
    data = DetectionDataset(read_imagenet_loc(root=tiny_loc.root, split="val"))
    draw_answers(localizer, data, range(2), tmp_path / "sheet.png", title="t", shown=lambda _: slice(1))
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.size[0] > 200
    monkeypatch.setattr("resdet.api.drawing.draw_comparison", lambda rows, *rest, **named: drawn.extend(rows))
    draw_answers(localizer, data, range(len(data)), tmp_path / "s.png", title="t", shown=lambda _: slice(1), images=3)
    assert len(drawn) == 3
    assert all(len(found[0]) == 1 for _, _, found in drawn)


def test_members(capsys):
    with pytest.raises(SystemExit):
        commands(["demo-loc", "--members", "0"])
    assert "at least 1" in capsys.readouterr().err
