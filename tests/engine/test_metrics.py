from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch

from resdet.datasets.coco import read_coco
from resdet.datasets.detection import DetectionDataset
from resdet.datasets.voc import read_voc
from resdet.engine.config import load_config
from resdet.engine.metrics import (
    ClassificationMetric,
    CocoMetric,
    VocMetric,
    build_detection_metric,
)
from resdet.errors import InputError
from resdet.evaluation.coco import evaluate_coco
from resdet.structures import Detections


@pytest.fixture
def coco(tiny):
    return DetectionDataset(read_coco(tiny.val, tiny.images))


@pytest.fixture
def voc(tiny):
    return DetectionDataset(read_voc([(tiny.voc, "val")]))


def perfect(dataset):
    """The ground truth as answers."""
    targets = [dataset[i][1] for i in range(len(dataset))]
    return [(Detections(t.boxes, torch.ones(len(t.boxes)), t.labels), t) for t in targets]


def score(metric, samples):
    for sample in samples:
        metric.process(None, [sample])
    return metric.evaluate(len(samples))


def test_the_truth_scores_one(coco, voc):
    figures = score(build_detection_metric("coco", coco.annotations), perfect(coco))
    assert figures["coco/AP"] == pytest.approx(1.0)
    assert len(figures) == 12
    for name in ("voc07", "voc12"):
        metric = build_detection_metric(name, voc.annotations)
        assert score(metric, perfect(voc)) == pytest.approx({"voc/mAP": 1.0, "coco/AP": 1.0, "coco/AP50": 1.0})
        assert [row.name for row in metric.report.per_class] == list(voc.classes)
        assert metric.report.method == {"voc07": "11point", "voc12": "area"}[name]


def test_labels_become_the_ids_of_the_file(coco):
    metric = CocoMetric(coco.annotations)
    score(metric, perfect(coco))
    assert {row["category_id"] for row in metric.rows} <= {2, 5, 9}
    assert {row["image_id"] for row in metric.rows} == {90, 100, 110, 120, 130}


def test_the_order_of_images_does_not_matter(coco):
    draw = np.random.default_rng(0)
    samples = perfect(coco)
    for detections, _ in samples:
        detections.boxes.add_(torch.from_numpy(draw.normal(0, 2, size=detections.boxes.shape)).float())
    here = score(CocoMetric(coco.annotations), samples)
    assert 0 < here["coco/AP"] < 1
    assert score(CocoMetric(coco.annotations), samples[::-1]) == here


def test_no_detections_score_zero(coco, voc):
    none = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    for dataset, name, key in ((coco, "coco", "coco/AP"), (voc, "voc07", "voc/mAP")):
        samples = [(none, target) for _, target in perfect(dataset)]
        assert score(build_detection_metric(name, dataset.annotations), samples)[key] == 0.0


def test_a_lost_or_doubled_image_is_an_error(coco):
    samples = perfect(coco)
    with pytest.raises(RuntimeError, match="4 results for 4 of 5 images"):
        metric = CocoMetric(coco.annotations)
        metric.process(None, samples[:-1])
        metric.evaluate(5)
    with pytest.raises(RuntimeError, match="6 results for 5 of 5 images"):
        metric = CocoMetric(coco.annotations)
        metric.process(None, [*samples, samples[0]])
        metric.evaluate(5)


def test_a_metric_starts_anew_after_each_evaluation(coco):
    metric = CocoMetric(coco.annotations)
    assert score(metric, perfect(coco)) == score(metric, perfect(coco))


def test_figures_are_those_of_the_file(tiny, tmp_path):
    # Boxes that training clips or drops are scored as they are written.
    content = json.loads(tiny.val.read_text())
    rows = content["annotations"]
    rows[0]["bbox"][0] -= 60.0  # partly, or wholly, outside its image
    rows[1]["bbox"][2] = 0.0
    rows[2]["area"] = 1e5
    rows[3]["iscrowd"] = 1
    content["categories"].reverse()
    path = tmp_path / "written.json"
    path.write_text(json.dumps(content))
    data = DetectionDataset(read_coco(path, tiny.images))
    assert len(data.annotations.boxes) < len(rows)
    draw = np.random.default_rng(0)
    samples = perfect(data)
    for detections, _ in samples:
        detections.boxes.add_(torch.from_numpy(draw.normal(0, 2, size=detections.boxes.shape)).float())
    metric = CocoMetric(data.annotations)
    figures = score(metric, samples)
    expected = evaluate_coco(content, metric.rows, backend="pycocotools")
    assert list(figures.values()) == list(expected[:12])
    assert sorted(metric.report.per_class) == sorted(expected.per_class)


def test_classes_that_the_reader_left_out_are_not_missed(tiny):
    dataset = DetectionDataset(read_coco(tiny.val, tiny.images, classes=("red", "blue")))
    metric = CocoMetric(dataset.annotations)
    assert score(metric, perfect(dataset))["coco/AP"] == pytest.approx(1.0)
    assert {row.name for row in metric.report.per_class} == {"red", "blue"}


def test_rows_of_another_data_set_are_refused(coco, voc):
    for metric in (CocoMetric(coco.annotations), VocMetric(voc.annotations, method="area")):
        score(metric, perfect(coco if isinstance(metric, CocoMetric) else voc))
        sound = metric.rows
        for key in ("image_id", "category_id"):
            rows = copy.deepcopy(sound)
            rows[0][key] = 77
            with pytest.raises(InputError, match=f"{key} 77"):
                metric.score_rows(rows)


def test_classification_counts():
    # Of four images of classes 0, 0, 1, 2, the second and the fourth are taken for class 1: 2 of 4 are right.
    metric = ClassificationMetric(("a", "b", "c"))
    logits = torch.eye(3)[torch.tensor([0, 1, 1, 1])]
    metric.process(None, [(logits[:2], torch.tensor([0, 0]))])
    metric.process(None, [(logits[2:], torch.tensor([1, 2]))])
    figures = metric.evaluate(4)
    assert (figures["top1"], figures["top1_error"]) == (0.5, 0.5)
    assert "top5" not in figures  # with three classes it could not be wrong
    metric.process(None, [(logits, torch.tensor([0, 1, 1, 1]))])
    assert metric.evaluate(4)["top1"] == 1.0  # counts start anew
    metric.process(None, [(logits[:3], torch.tensor([0, 1, 1]))])
    with pytest.raises(RuntimeError, match="3 of 4 images"):
        metric.evaluate(4)


def test_a_metric_must_go_with_the_data(det_config, cls_config, write_config):
    config = load_config(cls_config)
    assert isinstance(config.task.metric(config, config.task.test_data(config)), ClassificationMetric)
    with pytest.raises(InputError, match=r"metric = 'coco'\n.*classification"):
        load_config(cls_config, ["metric=coco"])
    with pytest.raises(InputError, match=r"metric = 'classification'\n.*coco"):
        load_config(det_config, ["metric=classification"])
    text = "from resdet.datasets.coco import read_coco"
    folder = "from resdet.datasets.sources import test_folder"
    rows = [line for line in det_config.read_text().splitlines() if line.startswith("test_data")]
    path = write_config((text, f"{text}\n{folder}"), (rows[0], 'test_data = dict(type=test_folder, root="x")'))
    config = load_config(path)
    with pytest.raises(InputError):
        config.task.test_data(config)
