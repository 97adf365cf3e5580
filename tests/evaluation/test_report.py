from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import resdet
from resdet.errors import InputError
from resdet.evaluation.coco import CocoClass, CocoFigures
from resdet.evaluation.report import commit_of, format_table, provenance, write_json
from resdet.evaluation.voc import VocClass, VocFigures

COCO = CocoFigures(
    *(0.5, 0.75, 0.25, -1.0, 0.1, 0.2, 0.3, 0.4, 0.5, -1.0, 0.6, 0.7),
    per_class=(CocoClass("cat", 0.5, 0.75, 12), CocoClass("traffic light", None, None, 0)),
)
VOC = VocFigures(0.8, (VocClass("RBC", 0.8, 0.9, 819, 1000),), 0.5, "area")


def test_coco_table():
    lines = format_table(COCO).splitlines()
    assert lines[0].split()[:2] == ["AP", "0.500"]
    assert lines[3].split()[:2] == ["APs", "-"]  # -1: no small object
    assert [line.split()[0] for line in lines[:12]] == list(CocoFigures._fields[:12])
    assert lines[12] == ""
    assert lines[13:] == [
        "class             AP   AP50  boxes",
        "cat            0.500  0.750     12",
        "traffic light      -      -      0",
    ]


def test_voc_table():
    lines = format_table(VOC).splitlines()
    assert lines[0] == "mAP  0.800  IoU 0.50, area under the curve"
    assert lines[2:] == ["class     AP  recall  boxes  detections", "RBC    0.800   0.900    819        1000"]
    assert "11 recalls" in format_table(VOC._replace(method="11point"))


def test_json_holds_only_what_json_knows(tmp_path):
    path = tmp_path / "new" / "metrics.json"
    record = dict(
        figures=COCO,
        nan=float("nan"),
        inf=np.float32("inf"),
        array=np.array([1.0, np.nan]),
        tensor=torch.tensor(3),
        path=Path("a"),
    )
    record[1] = (True, None, np.int64(7), "text")
    write_json(path, record)
    read = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert read["figures"]["AP"] == 0.5
    assert read["figures"]["per_class"][1] == {"name": "traffic light", "AP": None, "AP50": None, "boxes": 0}
    assert (read["nan"], read["inf"], read["array"], read["tensor"]) == (None, None, [1.0, None], 3)
    assert (read["path"], read["1"]) == ("a", [True, None, 7, "text"])


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    write_json(path, {"AP": 0.5})

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"metrics.json\n.*No space left"):
        write_json(path, {"AP": 0.75})
    assert json.loads(path.read_text()) == {"AP": 0.5}
    assert os.listdir(tmp_path) == ["metrics.json"]


def test_a_record_that_is_not_json_leaves_the_old_file(tmp_path):
    path = tmp_path / "metrics.json"
    write_json(path, {"AP": 0.5})
    with pytest.raises(TypeError):
        write_json(path, {"AP": object()})
    assert json.loads(path.read_text()) == {"AP": 0.5}


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"metrics.json\n"):
        write_json(tmp_path / "file" / "metrics.json", {})
    with pytest.raises(InputError, match="directory"):
        write_json(tmp_path, {})
    assert os.listdir(tmp_path) == ["file"]


def test_provenance(tmp_path):
    config, checkpoint = tmp_path / "config.py", tmp_path / "last.pth"
    config.write_text("lr = 0.1\n")
    checkpoint.write_bytes(b"weights")
    record = provenance(config, checkpoint, seed=3)
    assert record["config"] == {"path": str(config), "text": "lr = 0.1\n"}
    assert record["checkpoint"] == {"path": str(checkpoint), "sha256": hashlib.sha256(b"weights").hexdigest()}
    assert record["seed"] == 3
    assert record["versions"]["resdet"] == resdet.__version__
    assert record["versions"]["torch"] == torch.__version__
    assert set(record["versions"]) == {"python", "resdet", "torch", "torchvision", "numpy", "pycocotools"}
    assert record["machine"]["threads"] == torch.get_num_threads()
    assert record["machine"]["cpu"]
    assert provenance(config, None, config_text="resolved")["config"]["text"] == "resolved"
    assert provenance(None, None)["checkpoint"] == {"path": None, "sha256": None}
    write_json(tmp_path / "record.json", record)


def test_provenance_errors(tmp_path):
    with pytest.raises(InputError, match=r"none.py\n.*No such file"):
        provenance(tmp_path / "none.py", None)
    with pytest.raises(InputError, match=r"none.pth\n.*No such file.*\n.*checkpoint"):
        provenance(None, tmp_path / "none.pth")


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_of_a_file(tmp_path, monkeypatch):
    file = tmp_path / "repository" / "below" / "config.py"
    file.parent.mkdir(parents=True)
    file.write_text("first")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.resolve()))
    assert commit_of(file) is None  # no repository
    who = ["-c", "user.name=a", "-c", "user.email=b", "-c", "commit.gpgsign=false"]

    def git(*words):
        command = ["git", "-C", str(file.parents[1]), *who, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    assert commit_of(file) is None  # no commit
    git("add", ".")
    git("commit", "-m", "first")
    git("tag", "-a", "v1", "-m", "one")
    assert commit_of(file) == git("rev-parse", "HEAD")
    file.write_text("second, which is longer")
    assert commit_of(file) == git("rev-parse", "HEAD") + "+"
    monkeypatch.setenv("PATH", "")
    assert commit_of(file) is None
