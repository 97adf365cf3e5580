"""A detector from an ``.onnx`` file of ``tools/export.py``: numpy, onnxruntime and Pillow, and no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from resdet.api.sources import array_frames
from resdet.datasets.images import read_image
from resdet.errors import InputError


class Detections(NamedTuple):
    """The answer for one image, best first, as :class:`resdet.structures.Detections` but of numpy arrays."""

    boxes: np.ndarray
    """(D, 4) float32 xyxy in pixels of the picture."""
    scores: np.ndarray
    """(D,) float32 in [0, 1]."""
    labels: np.ndarray
    """(D,) int64 in [0, K)."""


class OnnxDetector:
    """A trained detector: ``OnnxDetector("model.onnx")(image)``, as :class:`resdet.Detector` without torch.

    Args:
        path: what ``tools/export.py`` wrote.
        device: ``"cpu"`` or ``"cuda"`` (the package onnxruntime-gpu).
        score_threshold: least score of a detection; not below the one that the file was made with.
        threads: of onnxruntime; None: its own choice.

    Raises:
        InputError: onnxruntime is missing, or has no such device; no such file, or one of another program.

    Attributes:
        classes: K names, index = label.
        category_ids: of each class in the data that it was trained on.
        score_threshold: least score of a detection.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        device: str = "cpu",
        score_threshold: float | None = None,
        threads: int | None = None,
    ) -> None:
        self._session = _session(path, device, threads)
        facts = self._session.get_modelmeta().custom_metadata_map
        if "classes" not in facts or "resize" not in facts:
            raise InputError(f"model {path}", found="another program's", needed="an .onnx file of tools/export.py")
        self.classes: tuple[str, ...] = tuple(json.loads(facts["classes"]))
        self.category_ids: tuple[int, ...] = tuple(json.loads(facts["category_ids"]))
        self.device = device
        self._least_score = float(json.loads(facts["score_threshold"]))
        self.score_threshold = self.checked_threshold(self._least_score if score_threshold is None else score_threshold)
        self._resize: dict[str, Any] = json.loads(facts["resize"])
        batch, _, *hw = self._session.get_inputs()[0].shape
        self._any_batch = isinstance(batch, str)
        self._fixed_hw: tuple[int, int] | None = None if isinstance(hw[0], str) else (hw[0], hw[1])

    def __call__(self, images: Any) -> Any:
        """Detect.

        Args:
            images: one picture, or a list of them, of any sizes: a path, an (H, W, 3) uint8 RGB array, a PIL image, or
                a (3, H, W) uint8 RGB tensor.

        Returns:
            :class:`Detections` of one picture, or a list of them; boxes in pixels of the picture.
        """
        single = not isinstance(images, (list, tuple))
        pictures = [to_array(image) for image in ([images] if single else images)]
        groups: dict[tuple[int, ...], list[int]] = {}
        for place, picture in enumerate(pictures):
            groups.setdefault(picture.shape if self._any_batch else (place,), []).append(place)
        found: dict[int, Detections] = {}
        for places in groups.values():
            found |= zip(places, self._detect([pictures[place] for place in places]), strict=True)
        return found[0] if single else [found[place] for place in range(len(pictures))]

    def checked_threshold(self, value: float) -> float:
        """A score_threshold that the file can serve.

        Raises:
            InputError: it is below the one that the file was made with, or above 1.
        """
        if not self._least_score <= value <= 1:
            own = f"{self._least_score:g}, which the file was made with, to 1"
            raise InputError("score_threshold", found=value, needed=f"{own}; or export it anew with --score-threshold")
        return value

    def stream(self, source: str | Path | int) -> Iterator[tuple[np.ndarray, Detections]]:
        """Frames and their detections, one by one, as they come: see :meth:`resdet.Detector.stream`.

        Args:
            source: an image, a folder, a pattern; with OpenCV also a video, a camera or a stream.

        Yields:
            An (H, W, 3) uint8 RGB frame, and its detections.

        Raises:
            InputError: no such source; an image that does not decode.
        """
        for frame in array_frames([source]):
            if isinstance(frame, InputError):
                raise frame
            (found,) = self([frame.pixels])
            yield frame.pixels, found

    def inputs(self, pictures: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """What the graph takes of (H, W, 3) uint8 RGB pictures of one size: ``images`` and ``sizes``."""
        rule, hw = self._resize, pictures[0].shape[:2]
        size = fitting_hw(hw, self._fixed_hw, rule)
        step = rule["multiple"]
        height, width = self._fixed_hw or (-(-side // step) * step for side in size)
        images = np.zeros((len(pictures), 3, height, width), np.float32)
        for image, picture in zip(images, pictures, strict=True):
            image[:, : size[0], : size[1]] = resize(picture, size, antialias=rule["antialias"]).transpose(2, 0, 1)
        return {"images": images, "sizes": np.tile(np.array(size, np.int64), (len(pictures), 1))}

    def _detect(self, pictures: Sequence[np.ndarray]) -> list[Detections]:
        """Detections of pictures of one size."""
        given = self.inputs(pictures)
        boxes, scores, labels = self._session.run(["boxes", "scores", "labels"], given)
        (height, width), seen = pictures[0].shape[:2], given["sizes"][0]
        factors = np.array([width / seen[1], height / seen[0]] * 2, np.float32)
        boxes = np.clip(boxes * factors, 0, np.array([width, height] * 2, np.float32))
        keep = (scores > self.score_threshold) & (labels >= 0)
        return [Detections(b[k], s[k], c[k]) for b, s, c, k in zip(boxes, scores, labels, keep, strict=True)]


def to_array(picture: Any) -> np.ndarray:
    """Any picture as (H, W, 3) uint8 RGB.

    Raises:
        InputError: it is none, or its file does not decode.
    """
    if isinstance(picture, (str, Path)):
        return read_image(str(picture))
    if isinstance(picture, Image.Image):
        picture = np.array(ImageOps.exif_transpose(picture).convert("RGB"))
    elif not isinstance(picture, np.ndarray) and hasattr(picture, "detach"):  # a tensor, whose package is not imported
        picture = picture.detach().cpu().numpy()
        picture = picture.transpose(1, 2, 0) if picture.ndim == 3 else picture
    fits = isinstance(picture, np.ndarray) and picture.ndim == 3 and picture.shape[2] == 3 and 0 not in picture.shape
    if not fits or picture.dtype != np.uint8:
        is_array = isinstance(picture, np.ndarray)
        found = f"{picture.dtype} of shape {picture.shape}" if is_array else type(picture).__name__
        raise InputError("image", found=found, needed="a path, a PIL image, or uint8 RGB (H, W, 3)")
    return picture


def fitting_hw(hw: tuple[int, ...], fixed_hw: tuple[int, int] | None, rule: dict[str, Any]) -> tuple[int, int]:
    """Size that an image of size ``hw`` is resized to: that of the net, or smaller where the input is fixed."""
    size = resized(hw, rule["shorter_side"], rule["longer_side"], rule["rounding"])
    if fixed_hw is None or (size[0] <= fixed_hw[0] and size[1] <= fixed_hw[1]):
        return size
    factor = min(fixed_hw[0] / hw[0], fixed_hw[1] / hw[1])
    return max(1, math.floor(hw[0] * factor)), max(1, math.floor(hw[1] * factor))


def resized(hw: tuple[int, ...], shorter_side: float, longer_side: float, rounding: str) -> tuple[int, int]:
    """As :func:`resdet.detection.preprocess.resized`, whose module imports torch."""
    factor = min(shorter_side / min(hw), longer_side / max(hw))
    sides = [side * factor for side in hw]
    if rounding == "detectron2":
        sides = [shorter_side if side == min(hw) else side * (shorter_side / min(hw)) for side in hw]
        if max(sides) > longer_side:
            sides = [side * (longer_side / max(sides)) for side in sides]
    height, width = (max(1, math.floor(side if rounding == "torchvision" else side + 0.5)) for side in sides)
    return height, width


def resize(picture: np.ndarray, hw: tuple[int, int], *, antialias: bool) -> np.ndarray:
    """(H, W, 3) uint8 to (h, w, 3) float32, bilinear; as torch does it, rounding aside."""
    if antialias:  # Pillow's own filter, which torch has taken over
        planes = [Image.fromarray(picture[..., colour].astype(np.float32)) for colour in range(3)]
        return np.stack([np.asarray(p.resize(hw[::-1], Image.Resampling.BILINEAR)) for p in planes], axis=-1)
    return _along(_along(picture, hw[0], axis=0), hw[1], axis=1)


def _along(pixels: np.ndarray, count: int, *, axis: int) -> np.ndarray:
    """Bilinear along one axis; centres of the old and the new pixels agree."""
    old = pixels.shape[axis]
    if old == count:
        return pixels.astype(np.float32)
    at = (np.arange(count, dtype=np.float32) + np.float32(0.5)) * np.float32(old / count) - np.float32(0.5)
    at = np.clip(at, 0, old - 1)
    low = at.astype(np.int64)
    share = (at - low).reshape(-1, 1, 1) if axis == 0 else (at - low).reshape(1, -1, 1)
    first = pixels.take(low, axis).astype(np.float32)
    return first + (pixels.take(np.minimum(low + 1, old - 1), axis).astype(np.float32) - first) * share


def _session(path: str | Path, device: str, threads: int | None) -> Any:
    """The file in onnxruntime."""
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError("onnxruntime", found="not installed", needed='pip install "resdet[export]"') from error
    where = f"model {path}"
    if not Path(path).is_file():
        raise InputError(where, found="no such file", needed="an .onnx file of tools/export.py")
    providers = {"cpu": ["CPUExecutionProvider"], "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"]}
    known = [name for name, provider in providers.items() if provider[0] in onnxruntime.get_available_providers()]
    if device not in known:
        raise InputError("device", found=repr(device), needed=" or ".join(known))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers[device])
    except Exception as error:  # of onnxruntime's own kinds, which have no base
        reason = str(error).strip().splitlines()[0]
        raise InputError(where, found=reason, needed="an .onnx file of tools/export.py") from error
