"""8-bit integers for processors: static quantization by onnxruntime's own tools, and what it changes.

Weights have 7 bits, for processors without VNNI add up two products in 16 bits, which 8 bits would overflow; so a file
detects the same wherever it runs.
"""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np

from resdet.datasets.coco import read_coco
from resdet.datasets.images import SUFFIXES, read_image
from resdet.deploy.onnx_detector import OnnxDetector
from resdet.errors import InputError
from resdet.evaluation.coco import evaluate_coco
from resdet.evaluation.coco_results import to_xywh
from resdet.evaluation.coco_rows import truth_of
from resdet.files import replacing

QUANTIZED = ("Conv", "Gemm", "MatMul")
"""Operators whose inputs become integers; coordinates go through none of them."""
KEPT = ("roi_head.class_logits", "roi_head.box_deltas", "rpn.head.objectness", "rpn.head.deltas")
"""Layers that stay floats: their outputs are scores and boxes, where a step of 1/256 of the range is seen."""
SAMPLE = 64
"""Images that ranges are read from."""


def sample_images(folder: str | Path, count: int = SAMPLE, *, flag: str = "int8") -> list[Path]:
    """Images of a folder and what is in it, evenly taken from their sorted names.

    Raises:
        InputError: there is no such folder, or no image in it.
    """
    found = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        what = "a folder without images" if Path(folder).is_dir() else "no such folder"
        raise InputError(f"--{flag} {folder}", found=what, needed=f"images ({', '.join(SUFFIXES)})")
    return found[:: max(1, len(found) // count)][:count]


def quantize(model: str | Path, out: str | Path, images: Sequence[Path]) -> Path:
    """Write a model of ``tools/export.py`` with integers in its large layers.

    Args:
        model: the ``.onnx`` file.
        out: what to write.
        images: whose activations tell the ranges.

    Returns:
        ``out`` as a path.

    Raises:
        InputError: an image that does not decode, or a model that is none of ours.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    detector, out = OnnxDetector(model), Path(out)

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self._inputs = (detector.inputs([read_image(path)]) for path in images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._inputs, None)

    with tempfile.TemporaryDirectory() as folder, _without_advice():
        prepared, quantized = Path(folder, "prepared.onnx"), Path(folder, "quantized.onnx")
        quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(prepared),
            str(quantized),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTIZED),
            nodes_to_exclude=_kept_nodes(prepared),
            per_channel=True,
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        with replacing(out) as file:
            file.write(quantized.read_bytes())
    return out


def _kept_nodes(model: Path) -> list[str]:
    """Names of the nodes of :data:`KEPT`."""
    import onnx

    kept = {layer: [] for layer in KEPT}
    for node in onnx.load(model).graph.node:
        for layer in (layer for layer in KEPT if any(f".{layer}." in f".{name}" for name in node.input)):
            kept[layer].append(node.name)
    if lost := [layer for layer, names in kept.items() if not names]:
        needed = "an .onnx file of tools/export.py"
        raise InputError(f"model {model}", found=f"no layer {', '.join(lost)}", needed=needed)
    return [name for names in kept.values() for name in names]


@contextmanager
def _without_advice() -> Iterator[None]:
    """Without the lines in which onnxruntime recommends what is done already."""
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger().setLevel(level)


def milliseconds(detectors: Sequence[OnnxDetector], images: Sequence[Path]) -> list[float]:
    """Median time of an image with each detector, in turns, without reading the file."""
    pictures = [read_image(path) for path in images]
    seconds: list[list[float]] = [[] for _ in detectors]
    for detector in detectors:
        detector(pictures[0])
    for picture in pictures:
        for detector, mine in zip(detectors, seconds, strict=True):
            started = time.perf_counter()
            detector(picture)
            mine.append(time.perf_counter() - started)
    return [1000 * median(mine) for mine in seconds]


def average_precision(detector: OnnxDetector, annotations: str | Path, images: str | Path) -> dict[str, float]:
    """COCO's AP and AP50 of a detector.

    Args:
        detector: on classes of the file.
        annotations: a COCO annotation file.
        images: the folder of its images.

    Raises:
        InputError: no such data, or other classes.
    """
    data = read_coco(annotations, images, classes=detector.classes)
    rows = []
    for row, image_id in enumerate(data.image_ids.tolist()):
        boxes, scores, labels = detector(data.path(row))
        ids = np.full(len(boxes), image_id), data.category_ids[labels]
        rows.append(np.column_stack([ids[0], to_xywh(boxes), scores, ids[1]]))
    figures = evaluate_coco(truth_of(data), np.concatenate(rows))
    return {"AP": figures.AP, "AP50": figures.AP50}
