"""The protocols of ``resdet.evaluation`` as mmengine metrics: collect in each process, evaluate once on rank 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.dist import broadcast_object_list
from mmengine.evaluator import BaseMetric

from resdet.datasets.annotations import Annotations, to_coco
from resdet.datasets.coco import load_coco_json
from resdet.engine.distributed import gather
from resdet.errors import InputError
from resdet.evaluation.classification import TopK
from resdet.evaluation.coco import SIZE_BOUNDS, CocoFigures, coco_results, evaluate_coco
from resdet.evaluation.voc import VocDetections, VocTruth, evaluate_voc
from resdet.structures import Detections


class ShareMetric(BaseMetric):
    """A metric over shares of unequal size.

    mmengine's own gathering interleaves equal shares and cuts the rest; here each process holds exactly the images it
    was given, each image once, and all of them are joined.
    """

    default_prefix = ""  # the names of the figures are complete
    higher_is_better = ""
    """The figure that tells the best checkpoint."""

    def evaluate(self, size: int) -> dict[str, float]:
        """Figures over all processes; ``size`` images must have been seen in all."""
        rows = gather(self.results)
        self.results = []
        figures = [self.compute_metrics(rows, size) if rows is not None else None]
        broadcast_object_list(figures)
        return figures[0]

    def compute_metrics(self, results: list, size: int) -> dict[str, float]:
        """Figures of the joined results."""
        raise NotImplementedError


class DetectionMetric(ShareMetric):
    """What COCO and VOC share: one row of plain arrays for each image."""

    def __init__(self, annotations: Annotations) -> None:
        super().__init__()
        self.annotations = annotations
        self.report: Any = None

    def process(self, data_batch: Any, data_samples: Sequence[tuple]) -> None:
        """Keep the detections of a batch."""
        for detections, target in data_samples:
            arrays = [t.cpu().numpy() for t in detections]
            self.results.append({"image_id": int(target.image_id), "detections": arrays})

    def joined(self, results: list, size: int) -> list:
        """Results in the order of the data set, after checking that each image came exactly once."""
        by_id = {row["image_id"]: row["detections"] for row in results}
        if len(by_id) != len(results) or len(by_id) != size:
            raise RuntimeError(
                f"{len(results)} results for {len(by_id)} of {size} images: an image was lost or doubled"
            )
        return [by_id[int(i)] for i in self.annotations.image_ids if int(i) in by_id]

    def compute_metrics(self, results: list, size: int) -> dict[str, float]:
        """Figures of all images."""
        return self.score_rows(coco_rows(self.joined(results, size), self.annotations))

    def score_rows(self, rows: list[dict]) -> dict[str, float]:
        """Figures of COCO result rows, from a net or from a file; keeps ``rows`` and ``report``.

        Raises:
            InputError: a row names an image or a category that the data set does not have.
        """
        raise NotImplementedError


class CocoMetric(DetectionMetric):
    """The 12 COCO figures."""

    higher_is_better = "coco/AP"

    def __init__(self, annotations: Annotations, *, size_bounds: tuple[float, float] = SIZE_BOUNDS) -> None:
        super().__init__(annotations)
        self.size_bounds = size_bounds

    def score_rows(self, rows: list[dict]) -> dict[str, float]:
        """See :func:`resdet.evaluation.coco.evaluate_coco`."""
        self.rows = rows
        self.report = evaluate_coco(coco_ground_truth(self.annotations), rows, size_bounds=self.size_bounds)
        return {f"coco/{name}": getattr(self.report, name) for name in CocoFigures._fields[:12]}


class VocMetric(DetectionMetric):
    """VOC's AP: 11 points (2007) or the area (2012), and COCO's average beside it."""

    higher_is_better = "voc/mAP"

    def __init__(self, annotations: Annotations, *, method: str) -> None:
        super().__init__(annotations)
        self.method = method

    def score_rows(self, rows: list[dict]) -> dict[str, float]:
        """See :func:`resdet.evaluation.voc.evaluate_voc`."""
        known = self.annotations
        self.rows = rows
        coco = evaluate_coco(to_coco(known), rows)  # also checks the ids of the rows
        image_of = {int(image_id): row for row, image_id in enumerate(known.image_ids)}
        label_of = {int(category_id): label for label, category_id in enumerate(known.category_ids)}
        boxes = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)
        found = VocDetections(
            boxes=np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1),
            scores=np.array([row["score"] for row in rows], dtype=np.float64),
            labels=np.array([label_of[row["category_id"]] for row in rows], dtype=np.int64),
            images=np.array([image_of[row["image_id"]] for row in rows], dtype=np.int64),
        )
        images = np.repeat(np.arange(len(known)), np.diff(known.first))
        truth = VocTruth(known.boxes, known.labels, known.ignore, images, len(known))
        self.report = evaluate_voc(truth, found, classes=known.classes, method=self.method)
        return {"voc/mAP": self.report.mAP, "coco/AP": coco.AP, "coco/AP50": coco.AP50}


class ClassificationMetric(BaseMetric):
    """Top-1 and top-5 accuracy and error, as fractions."""

    default_prefix = ""
    higher_is_better = "top1"

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__()
        self.classes = classes
        self.report = TopK(len(classes))

    def process(self, data_batch: Any, data_samples: Sequence[tuple]) -> None:
        """Count the right answers of a batch."""
        for logits, labels in data_samples:
            self.report.update(logits, labels)

    def evaluate(self, size: int) -> dict[str, float]:
        """Figures over all processes, which have seen ``size`` images together."""
        figures = self.report.summary()
        self.report.counts.zero_()
        if figures["images"] != size:
            raise RuntimeError(f"{figures['images']} of {size} images were seen")
        return figures

    def compute_metrics(self, results: list) -> dict:
        """Not used: counts are summed, and no rows are gathered."""
        raise NotImplementedError


def coco_rows(joined: list, annotations: Annotations) -> list[dict]:
    """COCO result rows of detections in the order of the data set."""
    rows = []
    for image_id, arrays in zip(annotations.image_ids, joined, strict=True):
        boxes, scores, labels = (torch.from_numpy(a) for a in arrays)
        rows += coco_results(Detections(boxes, scores, labels), int(image_id), annotations.category_ids)
    return rows


def coco_ground_truth(annotations: Annotations) -> dict:
    """The file itself where there is one, so that the figures are those of pycocotools called directly.

    Without the categories that the reader was told to leave out.
    """
    if not annotations.source.endswith(".json"):
        return to_coco(annotations)
    content, known = load_coco_json(annotations.source), set(annotations.category_ids.tolist())
    content["categories"] = [row for row in content["categories"] if row["id"] in known]
    content["annotations"] = [row for row in content["annotations"] if row["category_id"] in known]
    return content


def build_metric(name: str, dataset: Any) -> BaseMetric:
    """The metric that a config names.

    Raises:
        InputError: it does not go with the data.
    """
    if name == "classification":
        return ClassificationMetric(dataset.classes)
    if not hasattr(dataset, "annotations"):
        raise InputError(f"metric {name!r}", found="data without boxes", needed="metric = 'classification'")
    if name == "coco":
        return CocoMetric(dataset.annotations)
    return VocMetric(dataset.annotations, method={"voc07": "11point", "voc12": "area"}[name])
