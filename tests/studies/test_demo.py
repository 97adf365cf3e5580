"""The demo's drawing; its training is the tools' own and tested there."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from resdet.datasets.annotations import Annotations
from resdet.datasets.detection import DetectionDataset
from resdet.datasets.file_names import FileNames
from resdet.structures import Detections
from resdet.studies import demo


def annotations(folder):
    Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(folder / "a.png")
    Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(folder / "b.png")
    return Annotations(
        source="test",
        image_root=str(folder),
        classes=("one", "two"),
        category_ids=np.array([1, 2]),
        image_ids=np.array([1, 2]),
        files=FileNames(["a.png", "b.png"]),
        hw=np.array([[40, 60], [40, 60]], np.int32),
        first=np.array([0, 1, 1]),
        boxes=np.array([[5, 5, 30, 30]], np.float32),
        labels=np.array([1]),
        ignore=np.array([False]),
        areas=np.array([625.0], np.float32),
        box_ids=np.array([1]),
    )


def test_draws_so_many_images_and_what_is_to_be_shown(tmp_path, monkeypatch):
    class Detector:
        classes = ("one", "two")

        def __call__(self, image):
            boxes = torch.tensor([[5.0, 5, 30, 30], [1, 1, 9, 9]])
            return Detections(boxes, torch.tensor([0.9, 0.2]), torch.tensor([1, 0]))

    drawn = []
    monkeypatch.setattr("resdet.api.drawing.draw_comparison", lambda rows, *rest, **named: drawn.extend(rows))
    data = DetectionDataset(annotations(tmp_path))
    sure = {"title": "t", "shown": lambda answer: answer.scores >= 0.5}
    assert list(demo.with_objects(data)) == [0]  # the second image has no object
    demo.draw_answers(Detector(), data, range(2), tmp_path / "sheet.png", **sure, images=1)
    assert len(drawn) == 1
    _, (boxes, labels), (found, found_labels, scores) = drawn[0]
    assert boxes.tolist() == [[5, 5, 30, 30]] and labels.tolist() == [1]
    assert found.shape == (1, 4) and found_labels.tolist() == [1] and scores.tolist() == pytest.approx([0.9])


def test_draws_the_losses_of_the_log(tmp_path):
    log = tmp_path / "run" / "vis_data" / "scalars.json"
    log.parent.mkdir(parents=True)
    rows = [{"loss": 2.0, "loss_class": 1.0, "lr": 0.1, "step": 1}, {"coco/AP": 0.5, "step": 1}]
    rows += [{"loss": 1.0, "loss_class": 0.5, "lr": 0.1, "step": 2}]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    demo.draw_losses(tmp_path, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size[0] > 200
