"""Pictures most worth annotating next: those that a detector is not sure of.

Two signs are added. The *margin*: how near the scores are to one half (uncertainty sampling, Lewis and Gale 1994). The
*disagreement*: what is found in the picture alone or in its mirror image alone, which a net that has learnt an object
would find in both (consistency, Elezi et al. 2022). Each lies in [0, 1].
"""

from __future__ import annotations

import heapq
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from resdet import boxes as box_ops
from resdet.api.detector import Detector
from resdet.api.sources import Frame
from resdet.api.writers import Writer
from resdet.errors import InputError
from resdet.evaluation.coco_results import coco_results
from resdet.evaluation.report import write_json
from resdet.inference.view import mirror
from resdet.structures import Detections

FLOOR = 0.1
"""Detections from here on count; below, there are many in every picture."""
FAINT = 0.05
"""A partner in the mirror may be as faint, so that what is just above the floor does not lack one by a hair."""
SAME = 0.5
"""Least IoU of partners."""


class Uncertain(Writer):
    """The N least certain pictures: ``uncertain/images/`` and ``uncertain/annotations.json``, in COCO's form.

    What was found in them above the call's own least score stands as annotations, for a labelling tool to correct; the
    pictures come in their order, the least certain first, each with its figures.

    Args:
        out: a folder that exists.
        detector: which looks at the mirror image, too.
        count: N.

    Raises:
        InputError: the detector merges the two looks itself; an earlier call has left pictures there.
    """

    least = FAINT

    def __init__(self, out: Path, detector: Detector, *, count: int) -> None:
        super().__init__(out, detector.classes, detector.category_ids)
        if detector.net.settings.flip:
            found = "test.flip=True, which makes one answer of the picture and its mirror image"
            raise InputError("--uncertain", found=found, needed="test.flip=False: it compares the two")
        self.folder, self.detector, self.count = out / "uncertain", detector, count
        self.shown = detector.net.suppression.score_threshold
        if self.folder.exists():
            found = "pictures of an earlier call, which may have been annotated since"
            raise InputError(self.folder, found=found, needed="another --out, or this folder moved away")
        self._kept: list[tuple[float, int, dict[str, Any], Detections]] = []

    def add(self, number: int, name: str, frame: Frame, found: Detections) -> None:
        """Judge a picture, and keep it while it is among the least certain."""
        height, width = frame.pixels.shape[1:]
        seen = self.detector(frame.pixels.flip(-1))
        assert isinstance(seen, Detections)
        mirrored = seen._replace(boxes=mirror(seen.boxes, width))
        unsure = float(margins(found.scores.numpy(), np.zeros(len(found.scores), dtype=np.int64), count=1)[0])
        apart = disagreement(found, mirrored)
        if len(self._kept) == self.count and unsure + apart <= self._kept[0][0]:
            return
        suffix = ".png" if frame.number is not None else Path(frame.source).suffix
        row = {
            "file_name": f"{name}{suffix}",
            "height": height,
            "width": width,
            "source": frame.source if frame.number is None else f"{frame.source}#{frame.number}",
            "uncertainty": unsure + apart,
            "margin": unsure,
            "disagreement": apart,
        }
        place = self.folder / "images" / row["file_name"]
        place.parent.mkdir(parents=True, exist_ok=True)
        if frame.number is None:
            shutil.copyfile(frame.source, place)
        else:
            Image.fromarray(frame.pixels.permute(1, 2, 0).contiguous().numpy()).save(place)
        shown = Detections(*(part[found.scores > self.shown] for part in found))
        heapq.heappush(self._kept, (unsure + apart, -number, row, shown))
        if len(self._kept) > self.count:
            dropped = heapq.heappop(self._kept)[2]
            (self.folder / "images" / dropped["file_name"]).unlink()

    def close(self) -> None:
        """Write the annotations of those that are kept, if there was any picture."""
        if not self._kept:
            return
        images, annotations = [], []
        for rank, (_, _, row, found) in enumerate(sorted(self._kept, key=lambda kept: kept[:2], reverse=True), 1):
            images.append({"id": rank, **row})
            for result in coco_results(found, rank, self.category_ids):
                more = {"area": result["bbox"][2] * result["bbox"][3], "iscrowd": 0, "segmentation": []}
                annotations.append({"id": len(annotations) + 1, **result, **more})
        categories = zip(self.category_ids.tolist(), self.classes, strict=True)
        content = {
            "info": {"description": "the least certain picture first; annotations are a detector's, to be corrected"},
            "images": images,
            "categories": [{"id": key, "name": name} for key, name in categories],
            "annotations": annotations,
        }
        write_json(self.folder / "annotations.json", content)


def margins(scores: np.ndarray, images: np.ndarray, *, count: int) -> np.ndarray:
    """How unsure the scores of each image are: the mean of ``1 - |2 p - 1|`` over those above :data:`FLOOR`.

    Args:
        scores: (D,) p of detections.
        images: (D,) int, the image of each.
        count: N images.

    Returns:
        (N,) in [0, 1]: 1 where all scores are one half, 0 where all are sure or there is none.
    """
    counted = scores > FLOOR
    scores, images = scores[counted].astype(np.float64), images[counted]
    unsure = np.bincount(images, 1 - np.abs(2 * scores - 1), minlength=count)
    return unsure / np.maximum(np.bincount(images, minlength=count), 1)


def disagreement(first: Detections, second: Detections) -> float:
    """Share of the detections above :data:`FLOOR` that the other answer has not.

    Args:
        first: down to :data:`FAINT` or lower.
        second: likewise, in the same frame.

    Returns:
        In [0, 1]; 0 where nothing is found.
    """
    first, second = (Detections(*(part[answer.scores > FAINT] for part in answer)) for answer in (first, second))
    same = (box_ops.iou(first.boxes, second.boxes) >= SAME) & (first.labels[:, None] == second.labels)
    lonely = torch.cat([~same.any(1), ~same.any(0)])
    counted = torch.cat([first.scores, second.scores]) > FLOOR
    return int((lonely & counted).sum()) / max(1, int(counted.sum()))
