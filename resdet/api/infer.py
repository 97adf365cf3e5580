"""Pictures of files and folders, with what a detector finds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from resdet.api.detector import Detector
from resdet.api.drawing import draw_detections
from resdet.api.pictures import to_tensor
from resdet.errors import InputError
from resdet.evaluation.coco_results import coco_results
from resdet.evaluation.report import write_json

SURE = 0.5
"""Least score of what is drawn, unless another is asked for: configs' own is for evaluation."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


def infer_files(
    config: str | Path,
    checkpoint: str | Path,
    images: Sequence[str | Path],
    *,
    out: str | Path,
    score_threshold: float | None = None,
    device: str | None = None,
    batch_size: int = 1,
    options: Sequence[str] = (),
) -> tuple[int, dict[str, float]]:
    """Annotated pictures of files and folders, and ``detections.json`` in COCO's form beside them.

    Without a ``score_threshold``, and without one in the config's section ``test``, it is :data:`SURE`.

    Returns:
        Number of images, and the seconds per image of each stage.

    Raises:
        InputError: no image is found, or one does not decode.
    """
    if batch_size < 1:
        raise InputError("batch size", found=batch_size, needed="at least 1")
    own = Path(out).resolve()  # pictures of an earlier call are no input
    paths = [p for entry in images for p in _image_files(Path(entry)) if own not in p.resolve().parents]
    detector = Detector(config, checkpoint, device=device, score_threshold=score_threshold, options=options)
    net = detector.net
    if score_threshold is None and net.settings.score_threshold is None:
        net.suppression = net.suppression._replace(score_threshold=SURE)
    net.clock.wait = True
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    category_ids = np.arange(1, len(detector.classes) + 1)
    rows, listed, taken = [], [], set()
    for start in range(0, len(paths), batch_size):
        chunk = paths[start : start + batch_size]
        tensors = [to_tensor(path) for path in chunk]
        for number, (path, tensor, answer) in enumerate(zip(chunk, tensors, detector(tensors), strict=True), start + 1):
            picture = draw_detections(tensor, answer.boxes, answer.labels, answer.scores, classes=detector.classes)
            picture.save(_free_name(out, path.stem, taken))
            rows += coco_results(answer, number, category_ids)
            listed.append({"id": number, "file_name": str(path), "height": tensor.shape[1], "width": tensor.shape[2]})
    categories = [{"id": int(i), "name": name} for i, name in zip(category_ids, detector.classes, strict=True)]
    write_json(out / "detections.json", {"images": listed, "categories": categories, "annotations": rows})
    return len(paths), net.seconds_per_image()


def _free_name(folder: Path, stem: str, taken: set[str]) -> Path:
    """A picture's place; images of one name in several folders get numbers."""
    name, number = stem, 0
    while name in taken:
        number += 1
        name = f"{stem}_{number}"
    taken.add(name)
    return folder / f"{name}.png"


def _image_files(entry: Path) -> list[Path]:
    if entry.is_file():
        return [entry]
    found = sorted(p for p in entry.rglob("*") if p.suffix.lower() in SUFFIXES) if entry.is_dir() else []
    if not found:
        what = "a folder without images" if entry.is_dir() else "no such file or folder"
        raise InputError(entry, found=what, needed=f"an image ({', '.join(SUFFIXES)}) or a folder of them")
    return found
