"""How far the answers of an exported file are from those of the net it was made of, over photographs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from resdet.datasets.images import read_image
from resdet.deploy.onnx_detector import OnnxDetector
from resdet.detection.preprocess import Preprocess
from resdet.engine.tasks.detection import open_detector
from resdet.errors import InputError
from resdet.inference.predictor import Predictor
from resdet.structures import Detections

SAME = 1.0
"""Pixels within which two boxes of one class are the same detection."""
Answer = Callable[[Tensor], Detections]
"""Of a (3, H, W) uint8 RGB picture; boxes in its pixels."""


class Difference(NamedTuple):
    """Of two detectors, over some photographs."""

    images: int
    detections: int
    """Of the net."""
    alone: int
    """Detections of either that the other does not have."""
    boxes: float
    """Largest distance of two edges, in pixels of the photograph, of detections that both have."""
    scores: float
    """Largest difference of two scores, likewise."""

    def __str__(self) -> str:
        both = f"{self.images} photographs, {self.detections} detections, {self.alone} of one side alone"
        return f"{both}; boxes within {self.boxes:.2g} px, scores within {self.scores:.2g}"


def compare(
    checkpoint: str | Path, exported: str | Path, images: Sequence[Path], *, options: Sequence[str] = ()
) -> Difference:
    """The :class:`Difference` of a checkpoint and what :func:`resdet.deploy.export.export_detector` made of it.

    Args:
        checkpoint: of the net.
        exported: its .onnx or .pt2 file.
        images: photographs.
        options: those of the export.

    Raises:
        InputError: an image that does not decode, or is larger than a program of one size takes.
    """
    predictor, _ = open_detector(checkpoint, options, {"winograd": False, "compile": "off"})
    detector = onnx_answer(exported) if Path(exported).suffix == ".onnx" else program_answer(exported, predictor)
    pictures = (torch.from_numpy(read_image(path)).permute(2, 0, 1).contiguous() for path in images)
    return difference(lambda picture: predictor.predict([picture])[0], detector, pictures)


def difference(first: Answer, second: Answer, pictures: Iterable[Tensor]) -> Difference:
    """Compare two detectors over pictures."""
    images = detections = alone = 0
    boxes = scores = 0.0
    for picture in pictures:
        ours, theirs = first(picture), second(picture)
        apart = torch.cdist(ours.boxes, theirs.boxes, p=math.inf)
        apart[ours.labels[:, None] != theirs.labels] = math.inf
        same = (apart <= SAME) & (apart == apart.amin(1, keepdim=True)) if apart.numel() else apart > 0
        images, detections = images + 1, detections + len(ours.boxes)
        alone += int((~same.any(1)).sum() + (~same.any(0)).sum())
        boxes = max([boxes, *apart[same].tolist()])
        scores = max([scores, *(ours.scores[:, None] - theirs.scores).abs()[same].tolist()])
    return Difference(images, detections, alone, boxes, scores)


def onnx_answer(path: str | Path) -> Answer:
    """What an .onnx file answers."""
    detector = OnnxDetector(path)
    return lambda picture: Detections(*map(torch.from_numpy, detector(picture)))


def program_answer(path: str | Path, predictor: Predictor) -> Answer:
    """What a .pt2 file answers; ``predictor`` resizes its pictures, as a program takes them resized."""
    extra = {"resdet.json": ""}
    program = torch.export.load(path, extra_files=extra).module()
    least = json.loads(extra["resdet.json"])["score_threshold"]
    see = predictor.nets[0].preprocess
    assert isinstance(see, Preprocess)

    def answer(picture: Tensor) -> Detections:
        batch = see([picture])
        pixels = (batch.pixels * see.std + see.mean).contiguous()
        try:
            with torch.no_grad():
                boxes, scores, labels = (each[0] for each in program(pixels, torch.tensor(batch.input_hw)))
        except (RuntimeError, AssertionError) as error:  # torch 2.6 asserts
            found = "a photograph of {}x{} after resizing".format(*pixels.shape[2:])
            raise InputError(f"program {path}", found=found, needed="one of a size that it was made for") from error
        keep = (scores > least) & (labels >= 0)
        (height, width), (h, w) = picture.shape[1:], batch.input_hw[0]
        return Detections(boxes[keep] * torch.tensor([width / w, height / h] * 2), scores[keep], labels[keep])

    return answer
