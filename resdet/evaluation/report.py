"""Figures for people (a table) and for programs (JSON with where the figures came from)."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from resdet.errors import InputError
from resdet.evaluation.coco import CocoFigures
from resdet.evaluation.voc import VocFigures
from resdet.files import replacing, sha256
from resdet.version import __version__

COCO_MEANINGS = {
    "AP": "mean precision, IoU 0.50:0.95",
    "AP50": "at IoU 0.50",
    "AP75": "at IoU 0.75",
    "APs": "small objects, area < 32^2",
    "APm": "medium",
    "APl": "large, area > 96^2",
    "AR1": "mean recall, 1 detection per image",
    "AR10": "10 detections",
    "AR100": "100 detections",
    "ARs": "100 detections, small",
    "ARm": "medium",
    "ARl": "large",
}


def format_table(figures: CocoFigures | VocFigures) -> str:
    """The figures and the table of classes as lines of text; ``-`` where a figure is undefined."""
    if isinstance(figures, CocoFigures):
        summary = [(name, getattr(figures, name), meaning) for name, meaning in COCO_MEANINGS.items()]
    else:
        how = "area under the curve" if figures.method == "area" else "11 recalls (VOC 2007)"
        summary = [("mAP", figures.mAP, f"IoU {figures.iou:.2f}, {how}")]
    header = ("class", *figures.per_class[0]._fields[1:])
    return f"{aligned(summary)}\n\n{aligned([header, *figures.per_class])}"


def write_json(path: str | Path, record: Mapping | Sequence) -> None:
    """Write a record whole or not at all; a file already there stays until the new one is complete.

    Args:
        path: its folder is made when it is missing.
        record: nested mappings, sequences, named tuples, arrays, tensors and paths; numbers that are not finite
            become null.

    Raises:
        InputError: when the file cannot be written (full disk, no permission).
    """
    path = Path(path)
    text = json.dumps(plain(record), indent=2, allow_nan=False) + "\n"
    try:
        with replacing(path) as file:
            file.write(text.encode())
    except OSError as error:
        found = error.strerror or str(error)
        raise InputError(path, found=found, needed="a place that can be written; nothing there was changed") from error


def provenance(
    config: str | Path | None, checkpoint: str | Path | None, *, seed: int | None = None, config_text: str | None = None
) -> dict:
    """What is needed to get the same figures again.

    Args:
        config: path of the config file, or None.
        checkpoint: path of the weights, or None (figures of a results file).
        seed: of the run.
        config_text: the config with its bases and overrides resolved; by default the file as it stands.

    Raises:
        InputError: when a file cannot be read.
    """
    if config is not None and config_text is None:
        config_text = _read(config).decode("utf-8", errors="replace")
    try:
        checkpoint_hash = None if checkpoint is None else sha256(checkpoint)
    except OSError as error:
        raise InputError(checkpoint, found=error.strerror or error, needed="a checkpoint that can be read") from error
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "config": {"path": None if config is None else str(config), "text": config_text},
        "checkpoint": {"path": None if checkpoint is None else str(checkpoint), "sha256": checkpoint_hash},
        "seed": seed,
        "commit": commit_of(__file__) or (None if config is None else commit_of(config)),
        "versions": {
            "python": platform.python_version(),
            "resdet": __version__,
            "torch": torch.__version__,
            **{name: version(name) for name in ("torchvision", "numpy", "pycocotools")},
        },
        "machine": {
            "system": platform.platform(),
            "cpu": _cpu_model(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "gpus": torch.cuda.device_count(),
        },
    }


def commit_of(path: str | Path) -> str | None:
    """The commit of the repository that a file is in, ``+`` behind it where files of it have changed since.

    None outside of a repository, or where git is not installed or does not trust its owner.
    """
    folder = Path(path).resolve().parent
    command = ["git", "-C", str(folder), "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty=+"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=5, env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def aligned(rows: Sequence[Sequence]) -> str:
    """Columns of text, names to the left and numbers to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numeric = [not isinstance(value, str) for value in rows[-1]]
    lines = []
    for row in cells:
        parts = [c.rjust(w) if right else c.ljust(w) for c, w, right in zip(row, widths, numeric, strict=True)]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def _cell(value: str | float | int | None) -> str:
    if isinstance(value, float):
        return "-" if value < 0 else f"{value:.3f}"  # -1 is COCO's "no such object"
    return "-" if value is None else str(value)


def plain(value: object) -> object:
    """The same with only what JSON knows; numbers that are not finite become None."""
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(path, found=error.strerror or error, needed="a file that can be read") from error


def _cpu_model() -> str:
    """Its name where the system tells (Linux), else its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
