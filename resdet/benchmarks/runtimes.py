"""onnxruntime and OpenVINO as peers: our net with torchvision's weights as an ONNX file, run by them on a CPU.

The file is made as ``tools/export.py`` makes it, for the one size of the images, in float32; NMS is in it. From uint8
images to detections everything is timed, as on our side.
"""

from __future__ import annotations

import math
import multiprocessing
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from resdet.benchmarks.frameworks import NUM_CLASSES, Size
from resdet.benchmarks.jobs import Job, inference
from resdet.benchmarks.nets import build_theirs, framework, images_and_targets, ready_for_inference
from resdet.deploy.export import CELL, NAMES, Frame, write_predictor
from resdet.errors import InputError
from resdet.inference.predictor import Predictor
from resdet.structures import Detections

Run = Callable[[dict[str, np.ndarray]], Sequence[np.ndarray]]
"""From ``images`` and ``sizes`` to boxes, scores and labels."""


def check(name: str, *, work: str, amp: str) -> None:
    """Refuse what a runtime cannot be compared at; of other frameworks nothing.

    Raises:
        InputError: training, mixed precision, or a GPU that our side would take.
    """
    where = f"--beside {name}"
    if name not in RUNTIMES:
        return
    if work == "train":
        raise InputError(where, found="train", needed="infer alone: it runs exported nets")
    if amp != "off":
        raise InputError(where, found=f"--amp {amp}", needed="float32 on both sides, which is --amp off")
    if torch.cuda.is_available():
        raise InputError(where, found="a GPU", needed="CUDA_VISIBLE_DEVICES= for both sides on the CPU")


def runtime_job(name: str, net: str, hw: Size, *, batch_size: int, threads: int | None) -> Job:
    """A runtime with the file, ready to run.

    Args:
        name: of :data:`RUNTIMES`.
        net: of :data:`resdet.benchmarks.frameworks.NETS`.
        hw: of the images.
        batch_size: their number.
        threads: None: as many as torch takes here, so that both sides have the same.
    """
    images, _ = images_and_targets(batch_size, hw)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "net.onnx"))
        # In a process of its own: what the exporter leaves behind is no memory of the runtime.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            pool.submit(export, path, net, hw, batch_size).result()
        run = RUNTIMES[name](path, threads or torch.get_num_threads())
    return inference(nn.Identity(), lambda: detect(run, images))


def export(path: str, name: str, hw: Size, batch_size: int) -> None:
    """Write our net with torchvision's weights (:func:`resdet.benchmarks.nets.build_theirs`) as an ONNX file."""
    theirs = build_theirs("torchvision", name, hw, torch.device("cpu"))
    net = ready_for_inference(framework("torchvision").twin(theirs, name, hw))
    step = math.lcm(CELL, net.preprocess.multiple)
    frame = Frame((-(-hw[0] // step) * step, -(-hw[1] // step) * step), batch_size > 1)
    write_predictor(Predictor([net]), {"classes": [str(label) for label in range(NUM_CLASSES)]}, path, frame=frame)


def detect(run: Run, images: Sequence[Tensor]) -> list[Detections]:
    """Detections of uint8 images of one size, which the graph takes as they are, padded to its cells."""
    height, width = images[0].shape[1:]
    given = np.zeros((len(images), 3, -(-height // CELL) * CELL, -(-width // CELL) * CELL), np.float32)
    for place, image in zip(given, images, strict=True):
        place[:, :height, :width] = image.numpy()
    sizes = np.tile(np.array([height, width], np.int64), (len(images), 1))
    boxes, scores, labels = (torch.from_numpy(part) for part in run({"images": given, "sizes": sizes}))
    found = labels >= 0  # the rest fills up images with fewer detections
    return [Detections(b[k], s[k], c[k]) for b, s, c, k in zip(boxes, scores, labels, found, strict=True)]


def _onnxruntime(path: str, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda given: session.run(NAMES, given)


def _openvino(path: str, threads: int) -> Run:
    import openvino

    core = openvino.Core()
    settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    settings["INFERENCE_PRECISION_HINT"] = "f32"  # else 16 bits where the processor has them
    request = core.compile_model(path, "CPU", settings).create_infer_request()

    def run(given: dict[str, np.ndarray]) -> list[np.ndarray]:
        found = request.infer(given)
        return [np.array(found[name]) for name in NAMES]  # copies: the next call writes over them

    return run


RUNTIMES: dict[str, Callable[[str, int], Run]] = {"onnxruntime": _onnxruntime, "openvino": _openvino}
"""From a file and a number of threads to what runs it."""
