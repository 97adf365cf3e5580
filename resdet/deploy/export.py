"""A trained detector as an ONNX file or as a program of torch.export.

Both are made by ``torch.export``: torch's older exporter through TorchScript is deprecated, fixes as constants what it
reads from shapes, such as the numbers of anchors, and has no program for .pt2 files.
"""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.export import Dim, ExportedProgram

from resdet.deploy.graph import DetectionGraph, Survivors, survivors
from resdet.detection.faster_rcnn import FasterRCNN
from resdet.engine.tasks.detection import open_detector
from resdet.errors import InputError
from resdet.files import replacing, sha256
from resdet.inference.predictor import Predictor
from resdet.version import __version__

OPSET = 20
"""The default of today's exporter; onnxruntime knows it since 1.17 (2024)."""
CELL = 32
"""Pixels of a cell of the coarsest map that is made by halving: sides are multiples of it."""
MOST = 1 << 16
"""Images of a batch, or cells along a side, which are 3 at least: torch.export takes a map of one cell for another kind
of map, and P6 has half a cell's. torch 2.6 takes no batch without a bound."""
NAMES = ("boxes", "scores", "labels")
"""Of the outputs."""
PLAIN = {
    **{"refine": 0, "vote": None, "scales": (), "ensemble": ()},
    **{"flip": False, "sizes": (), "tiles": None, "nms": "hard"},
}
"""What section ``test`` must say of a net whose answer is one graph."""


class Frame(NamedTuple):
    """What a graph takes."""

    size: tuple[int, int] | None = None
    """Height and width of its input; None: any multiples."""
    any_batch: bool = False
    """Any number of images; else one."""


def export_detector(
    checkpoint: str | Path,
    out: str | Path,
    *,
    frame: Frame | None = None,
    options: Sequence[str] = (),
    opset: int = OPSET,
) -> Path:
    """Write a detector as one file that holds all of it, NMS included.

    Args:
        checkpoint: last.pth or best.pth of a run, or what ``tools/publish.py`` made of one.
        out: ``.onnx``, or ``.pt2`` for torch.export.
        frame: sizes that it takes; by default one image of any size.
        options: ``model.key=value`` and ``test.key=value`` in place of what the checkpoint tells.
        opset: of an .onnx file.

    Returns:
        ``out`` as a path.

    Raises:
        InputError: another ending; a checkpoint that is none, or of another task; a net that looks more than once; a
            size that it cannot take; packages are missing.
    """
    check_ending(out)
    predictor, meta = open_detector(checkpoint, options, {"winograd": False, "compile": "off"})
    predictor.requires_grad_(False)
    meta = {**meta, "checkpoint": sha256(checkpoint)}
    try:
        return write_predictor(predictor, meta, out, frame=frame, opset=opset)
    except InputError as error:
        raise InputError(f"export of {checkpoint}: {error.where}", found=error.found, needed=error.needed) from error


def check_ending(out: str | Path) -> None:
    """Refuse what is neither of the two kinds of files, and ONNX where its packages are missing.

    Raises:
        InputError: so it is.
    """
    ending = Path(out).suffix
    if ending not in (".onnx", ".pt2"):
        raise InputError(f"export to {out}", found=f"ending {ending!r}", needed=".onnx, or .pt2 for torch.export")
    if ending == ".onnx":
        _onnx_operators()


def write_predictor(
    predictor: Predictor, meta: Mapping[str, Any], out: str | Path, *, frame: Frame | None = None, opset: int = OPSET
) -> Path:
    """Write one net with its settings for test; as :func:`export_detector`, which reads them from a checkpoint.

    Args:
        predictor: of one net.
        meta: ``classes``, and what else is known: ``category_ids``, ``checkpoint`` (its hash).
        out: as there, like the rest.
        frame: likewise.
        opset: likewise.
    """
    out, frame = Path(out), frame or Frame()
    check_ending(out)
    net = _only_net(predictor)
    _check_frame(net, frame)
    facts = describe(net, predictor, meta)
    if out.suffix == ".pt2":
        program = trace(net, predictor, survivors, frame)
        with replacing(out) as file:
            torch.export.save(program, file, extra_files={"resdet.json": json.dumps(facts)})
        return out
    operators = _onnx_operators()
    program = trace(net, predictor, operators.survivors, frame)
    _write_onnx(program, out, opset=opset, table=operators.TRANSLATIONS, facts=facts)
    return out


def trace(net: FasterRCNN, predictor: Predictor, nms: Survivors, frame: Frame) -> ExportedProgram:
    """The program of a net, traced without a single image."""
    step = math.lcm(CELL, net.preprocess.multiple)
    sides = (net.preprocess.test_side, net.preprocess.longer_side)
    height, width = frame.size or tuple(max(4, -(-side // step)) * step for side in sides)
    batch = Dim("batch", min=1, max=MOST) if frame.any_batch else None
    cells = {axis: step * Dim(name, min=3, max=MOST) for axis, name in ((2, "height"), (3, "width"))}
    of_images = cells if frame.size is None else {}
    of_batch = {} if batch is None else {0: batch}
    images = torch.zeros(2 if frame.any_batch else 1, 3, height, width)  # torch takes a sample of 1 for a constant
    sizes = torch.tensor([[height, width]]).repeat(len(images), 1)
    graph = DetectionGraph(net.eval(), predictor.suppression, nms)
    with torch.no_grad(), _quiet(), _unfused(net):
        shapes = {"images": {**of_batch, **of_images}, "sizes": of_batch}
        return torch.export.export(graph, (images, sizes), dynamic_shapes=shapes, strict=False)


def describe(net: FasterRCNN, predictor: Predictor, meta: Mapping[str, Any]) -> dict[str, Any]:
    """What whoever runs the graph has to know: classes, and how an image becomes its input."""
    see, asked = net.preprocess, predictor.suppression
    classes = list(meta["classes"])
    return {
        "classes": classes,
        "category_ids": list(meta.get("category_ids") or range(1, len(classes) + 1)),
        "resize": {
            "shorter_side": see.test_side,
            "longer_side": see.longer_side,
            "rounding": see.rounding,
            "antialias": see.antialias,
            "multiple": math.lcm(CELL, see.multiple),
        },
        "mean": see.mean.flatten().tolist(),
        "std": see.std.flatten().tolist(),
        "score_threshold": asked.score_threshold,
        "nms_iou": asked.nms_iou,
        "max_per_image": asked.max_per_image,
        "resdet": __version__,
        "checkpoint": meta.get("checkpoint"),
    }


def _onnx_operators() -> Any:
    """:mod:`resdet.deploy.operators`, which needs packages of its own."""
    try:
        import onnx  # noqa: F401

        from resdet.deploy import operators
    except ImportError as error:
        raise InputError("ONNX", found=f"no {error.name}", needed='pip install "resdet[export]"') from error
    return operators


def _only_net(predictor: Predictor) -> FasterRCNN:
    """The net of a predictor that looks once.

    Raises:
        InputError: it does more, or its input is padded to no multiple of :data:`CELL`.
    """
    said = {name: getattr(predictor.settings, name) for name in PLAIN}
    more = {f"test.{name}": value for name, value in said.items() if value != PLAIN[name]}
    if more:
        back = " ".join(f"{name}={PLAIN[name.removeprefix('test.')]}" for name in more).replace(" ()", "()")
        found = ", ".join(f"{name}={value}" for name, value in more.items())
        raise InputError("settings", found=found, needed=f"one net that looks once: --cfg-options {back}")
    net = predictor.nets[0]
    assert isinstance(net, FasterRCNN)
    if net.preprocess.multiple % CELL:
        found = f"model.multiple={net.preprocess.multiple}"
        raise InputError("padding", found=found, needed=f"a multiple of {CELL}: --cfg-options model.multiple={CELL}")
    return net


def _check_frame(net: FasterRCNN, frame: Frame) -> None:
    step = net.preprocess.multiple
    if frame.size is not None and (min(frame.size) < step or any(side % step for side in frame.size)):
        found = "x".join(map(str, frame.size))
        raise InputError("size of the input", found=found, needed=f"HEIGHTxWIDTH in multiples of {step}")


def _write_onnx(program: ExportedProgram, out: Path, *, opset: int, table: Mapping, facts: Mapping[str, Any]) -> None:
    import onnx

    how = {"opset_version": opset, "optimize": True, "verbose": False, "dynamo": True}
    names = {"input_names": ("images", "sizes"), "output_names": NAMES}
    with torch.no_grad(), _quiet():
        made = torch.onnx.export(program, (), custom_translation_table=dict(table), **names, **how)
    model = made.model_proto
    del model.graph.value_info[:]  # runtimes infer them; these have torch's names of sizes
    axes = {
        "images": ("batch", None, "height", "width"),
        "sizes": ("batch",),
        **dict.fromkeys(NAMES, ("batch", "found")),
    }
    for value in (*model.graph.input, *model.graph.output):
        for axis, name in zip(value.type.tensor_type.shape.dim, axes[value.name], strict=False):
            if axis.dim_param and name:
                axis.dim_param = name
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in facts.items()})
    onnx.checker.check_model(model)
    with replacing(out) as file:
        file.write(model.SerializeToString())


@contextmanager
def _unfused(net: FasterRCNN) -> Iterator[None]:
    """Blocks add and then cut off: the fused way asks how large a map is, which fixes its size."""
    fused = [module for module in net.modules() if getattr(module, "folded", False)]
    try:
        for module in fused:
            module.folded = False
        yield
    finally:
        for module in fused:
            module.folded = True


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch says of its own workings."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.fx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
