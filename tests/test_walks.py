"""How far it is from a tool to the maths: our files on the call stack, which a reader has to open."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import resdet.evaluation.coco
from resdet import cli, evaluation
from resdet.api import Detector
from resdet.detection.faster_rcnn import FasterRCNN

PACKAGE = Path(resdet.__file__).parent
SHORT = ["--cfg-options", "schedule.length=1", "schedule.validate_every=1", "schedule.milestones=()"]


class Arrived(Exception):
    """Where the walk ends."""


def walk(monkeypatch, owner: object, name: str, start, *arguments) -> list[str]:
    """Our files between a call and a function, each once, in order."""
    seen: list[str] = []

    def arrive(*_: object, **__: object) -> None:
        frame = sys._getframe(1)
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(PACKAGE):
                seen.append(path.relative_to(PACKAGE).as_posix())
            frame = frame.f_back
        raise Arrived

    monkeypatch.setattr(owner, name, arrive)
    with pytest.raises((Arrived, SystemExit)):
        start(*arguments)
    return list(dict.fromkeys(reversed(seen)))


def test_from_the_training_tool_to_the_loss(monkeypatch, det_config, tmp_path):
    arguments = [str(det_config), "--work-dir", str(tmp_path / "run"), *SHORT]
    files = walk(monkeypatch, FasterRCNN, "loss", cli.train, "detection", "Train.", arguments)
    assert len(files) <= 7, files
    assert files[-1] == "engine/tasks/detection.py"


def test_from_the_evaluation_tool_to_the_ap(monkeypatch, det_config, trained):
    files = walk(
        monkeypatch, evaluation.coco, "coco_curves", cli.evaluate, [str(det_config), str(trained / "last.pth")]
    )
    assert len(files) <= 9, files


def test_from_an_image_to_its_detections(monkeypatch, det_config, trained):
    detector = Detector(det_config, trained / "last.pth")
    files = walk(monkeypatch, FasterRCNN, "classify", detector, np.zeros((60, 80, 3), np.uint8))
    assert len(files) <= 7, files
