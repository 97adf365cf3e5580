"""Detectors in service: one picture at a time, each looked at as its request says."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resdet.api.detector import Detector
from resdet.api.infer import SURE
from resdet.datasets.images import read_image
from resdet.deploy.onnx_detector import OnnxDetector
from resdet.errors import InputError, nearest
from resdet.inference.predictor import Predictor
from resdet.inference.settings import TestSettings

FIXED = ("ensemble", "winograd", "compile", "max_detections")
"""Settings of section ``test`` that a request may not say: they are of loading, and of a metric."""
CHOICES = tuple(name for name in TestSettings.model_fields if name not in FIXED)
"""What a request may say."""
MOST_LOOKS, LARGEST_SIDE, MOST_ROUNDS = 8, 2_000, 5
"""Sizes and scales of a request, their pixels, and rounds of refinement: a stranger may not ask for all the memory."""


class Answer(NamedTuple):
    """What a detector found in a picture, best first."""

    model: str
    """Its name."""
    pixels: np.ndarray
    """(H, W, 3) uint8 RGB."""
    boxes: np.ndarray
    """(D, 4) float32 xyxy in pixels of the picture."""
    scores: np.ndarray
    """(D,) float32 in [0, 1]."""
    labels: np.ndarray
    """(D,) int64 in [0, K)."""
    names: tuple[str, ...]
    """Of the D classes."""
    seconds: float
    """That it took."""

    def record(self) -> dict[str, Any]:
        """As JSON holds it, without the picture."""
        height, width = self.pixels.shape[:2]
        return {
            "model": self.model,
            "size": {"height": height, "width": width},
            "boxes": self.boxes.tolist(),
            "scores": self.scores.tolist(),
            "labels": self.labels.tolist(),
            "names": list(self.names),
            "seconds": round(self.seconds, 4),
        }


class Service:
    """Detectors by name; whoever asks, one picture is decoded or looked at at a time.

    Args:
        files: checkpoints of runs, published files, or ``.onnx`` files of ``tools/export.py``.
        device: the GPU where there is one.
        options: overrides of what the nets were trained with, as ``"model.max_per_image=20"``.

    Raises:
        InputError: a file that is no detector; options for an exported one.

    Attributes:
        detectors: by short names of their files, in the given order.
        classes: all names of classes that one of them knows.
    """

    def __init__(self, files: Sequence[str | Path], *, device: str | None = None, options: Sequence[str] = ()) -> None:
        opened = [_open(Path(file), device, options) for file in files]
        self.detectors: dict[str, Detector | OnnxDetector] = dict(zip(short_names(files), opened, strict=True))
        self.classes = tuple(dict.fromkeys(name for each in opened for name in each.classes))
        self._one = threading.Lock()

    def read(self, content: bytes | Path, *, name: str = "image") -> np.ndarray:
        """The (H, W, 3) uint8 RGB picture in a file.

        Args:
            content: the file, or what stands in it.
            name: of it, for messages.

        Raises:
            InputError: it does not decode.
        """
        with self._one:
            if isinstance(content, Path):
                return _decoded(content, name)
            with tempfile.TemporaryDirectory() as folder:  # decoders look at a file more than once
                path = Path(folder) / "upload"
                path.write_bytes(content)
                return _decoded(path, name)

    def settings(self, model: str | None = None) -> TestSettings:
        """How a detector looks at pictures where nothing is said."""
        detector = self._named(model)[1]
        if isinstance(detector, OnnxDetector):
            return TestSettings(score_threshold=max(SURE, detector.score_threshold))
        settings = detector.net.settings
        return settings if settings.score_threshold is not None else settings.updated(score_threshold=SURE)

    def detect(
        self,
        pixels: np.ndarray,
        *,
        model: str | None = None,
        test: Mapping[str, object] | None = None,
        only: Sequence[str] = (),
    ) -> Answer:
        """What a detector finds in a picture.

        Args:
            pixels: (H, W, 3) uint8 RGB.
            model: its name; None: the first one.
            test: settings of section ``test``, of :data:`CHOICES`, in place of its own. Without a score_threshold of
                either it is :data:`resdet.api.infer.SURE`, as in ``tools/infer.py``.
            only: names of classes; none: all.

        Raises:
            InputError: there is no such model, class or setting, or the settings do not fit.
        """
        name, detector = self._named(model)
        for unknown in (each for each in only if each not in self.classes):
            raise InputError("class", found=repr(unknown), needed=nearest(unknown, self.classes))
        asked = looking(detector, {"score_threshold": self.settings(name).score_threshold, **(test or {})})
        with self._one:
            began = time.perf_counter()
            boxes, scores, labels = (np.asarray(part) for part in asked(pixels))
            seconds = time.perf_counter() - began
        names = np.array([detector.classes[label] for label in labels], dtype=object)
        kept = np.isin(names, list(only)) if only else np.ones(len(names), bool)
        return Answer(name, pixels, boxes[kept], scores[kept], labels[kept], tuple(names[kept]), seconds)

    def _named(self, model: str | None) -> tuple[str, Detector | OnnxDetector]:
        name = next(iter(self.detectors)) if model is None else model
        if name not in self.detectors:
            raise InputError("model", found=repr(name), needed=nearest(name, self.detectors))
        return name, self.detectors[name]


def looking(detector: Detector | OnnxDetector, test: Mapping[str, object]) -> Detector | OnnxDetector:
    """The same detector, which looks in another way; the nets are shared.

    Args:
        detector: stays as it is.
        test: settings of section ``test``, of :data:`CHOICES`.

    Raises:
        InputError: no such setting, or one that does not fit; for an exported detector any but its threshold.
    """
    for name in (each for each in test if each not in CHOICES):
        raise InputError("setting", found=repr(name), needed=nearest(name, CHOICES))
    other = copy(detector)
    if isinstance(detector, OnnxDetector):
        settings, plain = TestSettings(**test), TestSettings()
        more = [each for each in CHOICES if getattr(settings, each) != getattr(plain, each)]
        for name in (each for each in more if each != "score_threshold"):
            needed = "score_threshold alone: an exported detector looks once; or its checkpoint"
            raise InputError(f"test.{name}", found=getattr(settings, name), needed=needed)
        if settings.score_threshold is not None:
            other.score_threshold = detector.checked_threshold(settings.score_threshold)
        return other
    settings = detector.net.settings.updated(**test)
    _check_bounds(settings, detector.net.settings)
    other.net = Predictor(list(detector.net.nets), settings).eval()
    return other


def _check_bounds(settings: TestSettings, own: TestSettings) -> None:
    """Refuse what takes too long or too much memory, unless the detector's own settings say it.

    Raises:
        InputError: names the setting.
    """
    for name in ("scales", "sizes"):
        sides = getattr(settings, name)
        if sides != getattr(own, name) and (len(sides) > MOST_LOOKS or max(sides, default=0) > LARGEST_SIDE):
            needed = f"at most {MOST_LOOKS} sides of at most {LARGEST_SIDE} pixels in service"
            raise InputError(f"test.{name}", found=sides, needed=needed)
    if settings.refine > max(MOST_ROUNDS, own.refine):
        raise InputError("test.refine", found=settings.refine, needed=f"at most {MOST_ROUNDS} rounds in service")


def short_names(files: Sequence[str | Path]) -> Iterator[str]:
    """A name for each file: its own without ending; where that is not the only one, its folder's before; else a number.

    Args:
        files: their paths.
    """
    paths = [Path(file).absolute() for file in files]
    stems = [path.stem for path in paths]
    longer = [
        stem if stems.count(stem) == 1 else f"{p.parent.name}/{stem}" for p, stem in zip(paths, stems, strict=True)
    ]
    for place, name in enumerate(longer):
        yield name if longer.count(name) == 1 else f"{name} ({longer[: place + 1].count(name)})"


def _open(file: Path, device: str | None, options: Sequence[str]) -> Detector | OnnxDetector:
    if file.suffix.lower() != ".onnx":
        return Detector(file, device=device, options=options)
    if options:
        raise InputError(
            f"options for {file}", found=", ".join(options), needed="a checkpoint; what is exported is fixed"
        )
    return OnnxDetector(file, device=device or "cpu")


def _decoded(path: Path, name: str) -> np.ndarray:
    """The picture in a file.

    Raises:
        InputError: it does not decode; the message has the name and not the path.
    """
    try:
        return read_image(path)
    except InputError as error:
        raise InputError(name, found=str(error.found).replace(str(path), name), needed=error.needed) from error
