"""The protocols of ``resdet.evaluation`` as mmengine metrics: collect in each process, evaluate once on rank 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_reduce, broadcast_object_list
from mmengine.evaluator import BaseMetric
from torch import Tensor

from resdet.datasets.annotations import Annotations
from resdet.engine.distributed import gather
from resdet.evaluation.classification import TopK
from resdet.evaluation.coco import SIZE_BOUNDS, CocoFigures, evaluate_coco
from resdet.evaluation.coco_curves import MOST, CocoFound
from resdet.evaluation.coco_results import found_rows, to_xywh
from resdet.evaluation.coco_rows import arrays_of, places, read_found, truth_of
from resdet.evaluation.localization import LocalizationErrors
from resdet.evaluation.voc import VocDetections, VocTruth, evaluate_voc


class DetectionMetric(BaseMetric):
    """What COCO and VOC share: each process keeps its detections in arrays, rank 0 joins them.

    mmengine's own gathering pickles objects, interleaves equal shares and cuts the rest; here each process holds
    exactly the images it was given, each image once.
    """

    default_prefix = ""  # the names of the figures are complete
    higher_is_better = ""
    """The figure that tells the best checkpoint."""
    read = staticmethod(truth_of)

    def __init__(self, annotations: Annotations) -> None:
        super().__init__()
        self.annotations = annotations
        self.report: Any = None
        self.truth = self.read(annotations)
        self.found: CocoFound | None = None
        """What was scored last."""

    @property
    def rows(self) -> list[dict]:
        """What was scored last, as rows of a COCO results file."""
        return [] if self.found is None else found_rows(self.found, self.truth)

    def process(self, data_batch: Any, data_samples: Sequence[tuple]) -> None:
        """Keep the detections of a batch: one transfer from the device."""
        fields = [torch.cat(column) for column in zip(*(detections for detections, _ in data_samples), strict=True)]
        boxes, scores, labels = fields
        table = torch.cat([boxes.float(), scores[:, None].float(), labels[:, None].float()], dim=1).cpu()
        counts = [(target.image_id, len(detections.labels)) for detections, target in data_samples]
        self.results.append((torch.tensor(counts), table))

    def evaluate(self, size: int) -> dict[str, float]:
        """Figures over all processes; ``size`` images must have been seen in all."""
        empty = torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, 6)
        counts, tables = zip(*(self.results or [empty]), strict=True)
        self.results = []
        counts, table = (gather(torch.cat(parts)) for parts in (counts, tables))
        figures = [self.compute_metrics((counts, table), size) if counts is not None else None]
        broadcast_object_list(figures)
        return figures[0]

    def compute_metrics(self, results: tuple[Tensor, Tensor], size: int) -> dict[str, float]:
        """Figures of all images.

        Args:
            results: of n images id and number of detections, (n, 2); of the detections xyxy, score, label, (D, 6).
            size: number of images that there should be.
        """
        counts, table = results
        image_ids, numbers = counts.numpy().T
        if len(np.unique(image_ids)) != len(image_ids) or len(image_ids) != size:
            found = f"{len(image_ids)} results for {len(np.unique(image_ids))} of {size} images"
            raise RuntimeError(f"{found}: an image was lost or doubled")
        boxes, scores, labels = (part.double().numpy() for part in (table[:, :4], table[:, 4], table[:, 5]))
        images = np.repeat(np.searchsorted(self.truth.image_ids, image_ids), numbers)
        order = np.argsort(images, kind="stable")
        labels = places(self.annotations.category_ids)[labels.astype(np.int64)]
        return self.score(CocoFound(*(part[order] for part in (to_xywh(boxes), scores, labels, images))))

    def score_rows(self, rows: Sequence[dict]) -> dict[str, float]:
        """Figures of COCO results, as a file has them.

        Raises:
            InputError: a row names an image or a category that the data set does not have.
        """
        return self.score(read_found(rows, self.truth))

    def score(self, found: CocoFound) -> dict[str, float]:
        """Figures of detections; keeps ``found`` and ``report``."""
        raise NotImplementedError


class Unscored(DetectionMetric):
    """No figures: of a test set without boxes, such as COCO's test-dev, the results are what is wanted."""

    read = staticmethod(arrays_of)

    def score(self, found: CocoFound) -> dict[str, float]:
        """Keep what was found."""
        self.found = found
        return {}


class CocoMetric(DetectionMetric):
    """The 12 COCO figures."""

    higher_is_better = "coco/AP"

    def __init__(
        self, annotations: Annotations, *, size_bounds: tuple[float, float] = SIZE_BOUNDS, max_detections: int = MOST
    ) -> None:
        super().__init__(annotations)
        self.how = {"size_bounds": size_bounds, "max_detections": max_detections}

    def score(self, found: CocoFound) -> dict[str, float]:
        """See :func:`resdet.evaluation.coco.evaluate_coco`."""
        self.found, self.report = found, evaluate_coco(self.truth, found, **self.how)
        return {f"coco/{name}": getattr(self.report, name) for name in CocoFigures._fields[:12]}


class VocMetric(DetectionMetric):
    """VOC's AP: 11 points (2007) or the area (2012), and COCO's average beside it."""

    higher_is_better = "voc/mAP"

    def __init__(self, annotations: Annotations, *, method: str) -> None:
        super().__init__(annotations)
        self.method = method

    def score(self, found: CocoFound) -> dict[str, float]:
        """See :func:`resdet.evaluation.voc.evaluate_voc`."""
        known, self.found = self.annotations, found
        coco = evaluate_coco(self.truth, found)
        detections = VocDetections(
            boxes=np.concatenate([found.boxes[:, :2], found.boxes[:, :2] + found.boxes[:, 2:]], axis=1),
            scores=found.scores,
            labels=np.argsort(known.category_ids)[found.labels],  # from places among the rising ids
            images=np.argsort(known.image_ids)[found.images],
        )
        images = np.repeat(np.arange(len(known)), np.diff(known.first))
        truth = VocTruth(known.boxes, known.labels, known.ignore, images, len(known))
        self.report = evaluate_voc(truth, detections, classes=known.classes, method=self.method)
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


class LocalizationMetric(BaseMetric):
    """Localization errors as fractions, of the true class or of predicted ones; and ``loc/right``, for the best.

    Of k predicted classes there are the errors of the first pair and of all k, of five at most: ``loc/top1_error`` and
    ``loc/top3_error`` for three. Where k is the number of classes, only those of the first.
    """

    default_prefix = ""
    higher_is_better = "loc/right"

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__()
        self.report = LocalizationErrors(ks=range(1, min(5, len(classes)) + 1))
        self.classes, self.pairs = len(classes), 0

    def process(self, data_batch: Any, data_samples: Sequence[tuple]) -> None:
        """Count the images of a batch."""
        for truth_box, pairs, target in data_samples:
            self.report.update(truth_box, pairs, target)
            self.pairs = max(self.pairs, len(pairs.labels) if pairs is not None else 0)

    def evaluate(self, size: int) -> dict[str, float]:
        """Figures over all processes, which have seen ``size`` images together."""
        figures = self.report.summary()
        self.report.counts.zero_()
        if figures["images"] != size:
            raise RuntimeError(f"{figures['images']} of {size} images were seen")
        pairs = torch.tensor(self.pairs)
        all_reduce(pairs, "max")  # a process may have seen no image
        self.pairs, top = 0, min(int(pairs), self.report.ks[-1])
        ks = {1, top if top < self.classes else 1}
        other = {f"{kind}/top{k}_error" for kind in ("loc", "cls") for k in self.report.ks if k not in ks}
        figures = {name: figure for name, figure in figures.items() if name not in other}
        names = ("loc/gt_class_error", f"loc/top{max(ks)}_error")
        error = next(figures[name] for name in names if name in figures)
        return {**figures, "loc/right": 1 - error}

    def compute_metrics(self, results: list) -> dict:
        """Not used: counts are summed, and no rows are gathered."""
        raise NotImplementedError


def build_detection_metric(name: str, annotations: Annotations, *, max_detections: int = MOST) -> DetectionMetric:
    """The metric of data with boxes that a config names: coco, voc07 or voc12."""
    if name == "coco":
        return CocoMetric(annotations, max_detections=max_detections)
    return VocMetric(annotations, method={"voc07": "11point", "voc12": "area"}[name])
