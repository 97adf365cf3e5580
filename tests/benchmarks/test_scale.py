"""The synthetic set is a sound one, and each reading is measured. No time is asserted."""

from __future__ import annotations

import json

import pytest

from resdet import cli
from resdet.benchmarks import scale
from resdet.benchmarks.scale import Reading, ScaleRow, at_full_size, scale_costs, write_coco
from resdet.datasets import kept_annotations
from resdet.datasets.coco import read_coco


def test_the_set(tmp_path):
    boxes = write_coco(tmp_path / "a.json", 60)
    content = json.loads((tmp_path / "a.json").read_text())
    assert len(content["images"]) == 60 and len(content["annotations"]) == boxes > 500
    found = read_coco(tmp_path / "a.json", tmp_path, strict=True)  # in order, no box outside
    assert len(found.boxes) == boxes and len(found.classes) == 365
    assert found.files[0] == "patch1/objects365_v2_00000001.jpg"


def test_each_reading(monkeypatch):
    class Here:
        def __init__(self, make, *arguments):
            self.made = make(*arguments)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def built(self):
            return self

        def ask(self, method):
            return getattr(self.made, method)()

    monkeypatch.setenv("RESDET_CACHE", "")  # set by the process, which here is this one
    monkeypatch.setattr(kept_annotations, "LEAST_BYTES", kept_annotations.LEAST_BYTES)
    monkeypatch.setattr(scale, "Worker", Here)
    monkeypatch.setattr(Reading, "loader", lambda self: float(len(self._annotations)))
    rows = list(scale_costs(20))
    assert [row.work.split()[0] for row in rows] == ["reading", "reading", "the"]
    assert all(row.images == row.loader_mib == 20 and row.own_seconds >= 0 and row.gib >= 0 for row in rows)
    assert len({row.boxes for row in rows}) == 1


def test_at_full_size():
    row = ScaleRow("reading", scale.FULL // 2, 9, 1.0, seconds=9.0, own_seconds=3.0, gib=0.5, loader_mib=0.0)
    assert at_full_size(row) == "reading: times 2.0 to 1,742,292 images: 6 s of processor, 1.0 GiB"


def test_images_of_scale_only(capsys):
    with pytest.raises(SystemExit):
        cli.benchmark(["eval", "--images", "5"])
    assert "--images: of the work scale only" in capsys.readouterr().err
