"""What tools/export.py --check says."""

from __future__ import annotations

import re

import pytest
import torch

from resdet import cli
from resdet.deploy.parity import difference
from resdet.structures import Detections


def found(*rows):
    """Detections of rows x1, y1, x2, y2, score, label."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].long())


def test_differences_by_hand():
    ours = {
        1: found((0, 0, 10, 10, 0.9, 0), (20, 0, 30, 10, 0.8, 0), (50, 50, 60, 60, 0.3, 1)),
        2: found(),
        3: found((0, 0, 5, 5, 0.5, 0)),
    }
    theirs = {
        # In another order; the first moved by 0.25, the second's score is 0.0625 less, the third is of another class.
        1: found((20, 0, 30, 10, 0.7375, 0), (0, 0, 10, 10.25, 0.9, 0), (50, 50, 60, 60, 0.3, 0)),
        2: found((1, 1, 2, 2, 0.4, 1)),
        3: found((0, 0, 5, 7, 0.5, 0)),
    }
    told = difference(ours.get, theirs.get, list(ours))
    assert told[:4] == (3, 4, 2 + 1 + 2, 0.25)
    assert told.scores == pytest.approx(0.0625)
    same = difference(ours.get, ours.get, list(ours))
    assert tuple(same) == (3, 4, 0, 0.0, 0.0)
    assert str(same) == "3 photographs, 4 detections, 0 of one side alone; boxes within 0 px, scores within 0"


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")  # torch 2.6 opening its own file
@pytest.mark.filterwarnings("ignore:Node .* does not reference an nn.Module:UserWarning")  # likewise
@pytest.mark.parametrize("ending", ["onnx", "pt2"])
def test_the_command_compares(trained, tiny, tmp_path, capsys, ending):
    for package in ("onnx", "onnxscript", "onnxruntime") if ending == "onnx" else ():
        pytest.importorskip(package)
    flags = ["--check", str(tiny.images), "--images", "3", "--score-threshold", "0.05"]
    # A program takes three cells of 32 at least; in training other counts of proposals hold, which must not be asked.
    flags += ["--cfg-options", "model.shorter_side=96", "model.train_proposals=(9,9)"]
    cli.export([str(trained / "last.pth"), str(tmp_path / f"net.{ending}"), *flags])
    said = capsys.readouterr().out
    told = said.partition("beside the net: ")[2].splitlines()[0]
    images, detections, alone, boxes, scores = map(float, re.findall(r"\d[\d.]*(?:e-\d+)?", told))
    assert (images, alone) == (3, 0) and detections > 20
    assert boxes < 0.05 and scores < 1e-4


def test_a_program_of_another_size(trained, tiny, tmp_path):
    with pytest.raises(SystemExit) as ended:
        cli.export(
            [str(trained / "last.pth"), str(tmp_path / "a.pt2"), "--size", "96x192", "--check", str(tiny.images)]
        )
    assert all(word in str(ended.value) for word in (f"program {tmp_path}", "after resizing", "made for"))


def test_photographs_are_wanted(trained, tmp_path):
    with pytest.raises(SystemExit) as ended:
        cli.export([str(trained / "last.pth"), str(tmp_path / "net.pt2"), "--check", str(tmp_path)])
    assert all(word in str(ended.value) for word in (f"--check {tmp_path}", "a folder without images"))
    assert not list(tmp_path.iterdir())
