from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from resdet import cli
from resdet.api.sources import Frame
from resdet.datasets.coco import read_coco
from resdet.detection.faster_rcnn import Suppression
from resdet.errors import InputError
from resdet.inference.settings import TestSettings
from resdet.inspection.uncertain import Uncertain, disagreement, margins
from resdet.structures import Detections


def detections(*rows: tuple[float, ...]) -> Detections:
    """Of (x1, y1, x2, y2, score, label)."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].long())


def test_margins_by_hand():
    # Image 0: 1 - |2 * 0.5 - 1| = 1 and 1 - |2 * 0.9 - 1| = 0.2, mean 0.6; 0.05 is below the floor. Image 1 has
    # nothing, image 2 one at 0.25: 0.5, image 3 one that is sure.
    scores, images = np.array([0.5, 0.9, 0.05, 0.25, 1.0]), np.array([0, 0, 0, 2, 3])
    assert margins(scores, images, count=4) == pytest.approx([0.6, 0, 0.5, 0])
    assert margins(scores[:0], images[:0], count=2).tolist() == [0, 0]


def test_disagreement_by_hand():
    first = detections((0, 0, 10, 10, 0.9, 0), (50, 50, 60, 60, 0.6, 0), (20, 20, 30, 30, 0.12, 1))
    second = detections(
        (1, 0, 11, 10, 0.8, 0),  # IoU 9 / 11 with the first
        (50, 50, 60, 60, 0.5, 1),  # of another class than the one that lies there
        (20, 20, 30, 30, 0.07, 1),  # faint: it is a partner, but does not count itself
        (80, 80, 90, 90, 0.08, 1),  # faint and alone: does not count
    )
    # Five count: two pairs of which one is half counted (0.9 with 0.8; 0.12), and two without a partner.
    assert disagreement(first, second) == disagreement(second, first) == pytest.approx(2 / 5)
    assert disagreement(first, first) == 0
    assert disagreement(first, detections()) == 1
    assert disagreement(detections(), detections()) == 0
    gone = detections((20, 20, 30, 30, 0.04, 1))  # too faint for a partner
    assert disagreement(detections((20, 20, 30, 30, 0.12, 1)), gone) == 1


class Told:
    """A detector that gives for the mirror images what it is told, in the order of the calls."""

    classes, category_ids = ("cat", "dog"), (3, 8)

    def __init__(self, *answers: Detections, flip: bool = False) -> None:
        self.answers = list(answers)
        self.net = SimpleNamespace(settings=TestSettings(flip=flip), suppression=Suppression(score_threshold=0.5))
        self.seen = []

    def __call__(self, pixels):
        self.seen.append(pixels)
        return self.answers.pop(0)


SURE = detections((10, 10, 30, 30, 1.0, 0))
MIRRORED = detections((70, 10, 90, 30, 1.0, 0))
"""In an image of 100 pixels' width."""
HALF = detections((10, 10, 30, 30, 0.6, 1), (40, 10, 60, 40, 0.4, 0))
HALF_MIRRORED = detections((70, 10, 90, 30, 0.6, 1), (40, 10, 60, 40, 0.4, 0))


@pytest.fixture
def shots(tmp_path):
    """Five pictures of 50 x 100, and a frame of a video."""
    (tmp_path / "shots").mkdir()
    made = []
    for number in range(5):
        path = tmp_path / "shots" / f"{number}.jpg"
        pixels = np.full((50, 100, 3), 40 * number, dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        made.append(Frame(str(path), None, torch.from_numpy(pixels).permute(2, 0, 1), 0.0))
    return [*made, Frame("street.mp4", 7, made[2].pixels, 25.0)]


def test_the_least_certain_come_first_and_the_others_go(shots, tmp_path):
    answers = [  # each picture's own, and that of its mirror image: margins and disagreement
        (SURE, MIRRORED),  # 0 + 0
        (HALF, HALF_MIRRORED),  # (0.8 + 0.8) / 2 + 0
        (detections(), detections()),  # 0 + 0
        (SURE, detections()),  # 0 + 1
        (SURE, SURE),  # 0 + 1: not where the mirror image of it should be
        (HALF, detections()),  # 0.8 + 1
    ]
    detector = Told(*(mirrored for _, mirrored in answers))
    writer = Uncertain(tmp_path, detector, count=4)
    for number, (frame, (found, _)) in enumerate(zip(shots, answers, strict=True), 1):
        writer.add(number, frame.name, frame, found)
    writer.close()
    assert torch.equal(detector.seen[1], shots[1].pixels.flip(-1))
    content = json.loads((tmp_path / "uncertain" / "annotations.json").read_text())
    rows = [(row["id"], row["file_name"], row["margin"], row["disagreement"]) for row in content["images"]]
    assert rows == [
        (1, "street_000007.png", pytest.approx(0.8), 1),
        (2, "3.jpg", 0, 1),
        (3, "4.jpg", 0, 1),
        (4, "1.jpg", pytest.approx(0.8), 0),
    ]
    assert [row["uncertainty"] for row in content["images"]] == pytest.approx([1.8, 1, 1, 0.8])
    assert content["images"][0]["source"] == "street.mp4#7" and content["images"][1]["source"] == shots[3].source
    assert (content["images"][0]["height"], content["images"][0]["width"]) == (50, 100)
    kept = tmp_path / "uncertain" / "images"
    assert sorted(path.name for path in kept.iterdir()) == sorted(row["file_name"] for row in content["images"])
    assert (kept / "3.jpg").read_bytes() == (tmp_path / "shots" / "3.jpg").read_bytes()
    assert np.array_equal(np.asarray(Image.open(kept / "street_000007.png")), np.full((50, 100, 3), 80))


def test_annotations_that_readers_open(shots, tmp_path):
    writer = Uncertain(tmp_path, Told(HALF_MIRRORED, detections()), count=2)
    writer.add(1, "0", shots[0], HALF)
    writer.add(2, "1", shots[1], detections())
    writer.close()
    file = tmp_path / "uncertain" / "annotations.json"
    content = json.loads(file.read_text())
    assert content["categories"] == [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}]
    (row,) = content["annotations"]  # the other one is below the threshold of the call
    assert row == {
        **{"id": 1, "image_id": 1, "category_id": 8, "bbox": [10, 10, 20, 20], "score": pytest.approx(0.6)},
        **{"area": 400, "iscrowd": 0, "segmentation": []},
    }
    data = read_coco(annotation_file=str(file), image_root=str(tmp_path / "uncertain" / "images"))
    assert data.classes == ("cat", "dog") and data.boxes.tolist() == [[10, 10, 30, 30]]


def test_refusals(tmp_path):
    with pytest.raises(InputError, match=r"test\.flip=True.*\n  needed: test\.flip=False"):
        Uncertain(tmp_path, Told(flip=True), count=1)
    Uncertain(tmp_path, Told(), count=1).close()
    assert list(tmp_path.iterdir()) == []  # nothing was seen
    (tmp_path / "uncertain").mkdir()
    with pytest.raises(InputError, match="annotated since"):
        Uncertain(tmp_path, Told(), count=1)


def infer(source, *words: object) -> None:
    cli.infer([*map(str, source), "--save", "coco", "--batch-size", "3", *map(str, words)])


@pytest.mark.parametrize("how", [[], ["--nms", "gaussian"], ["--vote", "--sizes", "48", "--merge", "wbf"]], ids=str)
def test_what_is_found_besides_changes_nothing(trained, tiny, tmp_path, how):
    for folder, more in (("plain", []), ("both", ["--uncertain", "2"])):
        infer((trained / "last.pth", tiny.images), "--out", tmp_path / folder, "--score-threshold", "0.1", *how, *more)
    plain, both = ((tmp_path / folder / "detections.json").read_bytes() for folder in ("plain", "both"))
    assert plain == both and len(json.loads(plain)["annotations"]) > 0


def test_the_tool(trained, tiny, tmp_path, capsys):
    source, out = (trained / "last.pth", tiny.images), tmp_path / "out"
    infer(source, "--out", out, "--score-threshold", "0.1", "--uncertain", "3")
    assert f"the 3 least certain -> {out}/uncertain/" in capsys.readouterr().out
    written = (out / "detections.json").read_bytes()
    content, every = json.loads((out / "uncertain" / "annotations.json").read_text()), json.loads(written)
    figures = [row["uncertainty"] for row in content["images"]]
    assert len(figures) == 3 and figures == sorted(figures, reverse=True) and figures[0] > 0
    assert content["annotations"]
    ids = {row["file_name"]: row["id"] for row in every["images"]}
    for image in content["images"]:
        mine = [row["bbox"] for row in content["annotations"] if row["image_id"] == image["id"]]
        assert mine == [row["bbox"] for row in every["annotations"] if row["image_id"] == ids[image["source"]]]
    with pytest.raises(SystemExit, match="an earlier call"):
        infer(source, "--out", out, "--uncertain", "3")
    assert (out / "detections.json").read_bytes() == written
    with pytest.raises(SystemExit, match=r"test\.flip=False"):
        infer(source, "--out", tmp_path / "flip", "--flip", "--uncertain", "3")
    with pytest.raises(SystemExit):
        infer(source, "--uncertain", "0")
    assert "--uncertain: 0: at least 1" in capsys.readouterr().err
