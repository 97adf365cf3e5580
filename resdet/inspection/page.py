"""The report as one HTML file that asks nothing of a network: the template, and what of it is drawn."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from resdet.api.drawing import draw_detections
from resdet.datasets.images import read_image
from resdet.errors import InputError
from resdet.evaluation.report import COCO_MEANINGS, plain, provenance
from resdet.files import replacing
from resdet.inspection.inputs import InspectedData, open_data, open_detections
from resdet.inspection.report import Judged, build_record

PICTURE_SIDE, JPEG_QUALITY = 640, 80
"""A picture in the page has at most so many pixels on its longer side: 30 to 100 kB."""
CHART = (300, 180)
"""Width and height of a chart's inside, in units of its SVG."""


def write_report(
    data: str | Path,
    results: Sequence[str | Path] = (),
    *,
    out: str | Path,
    images: str | Path | None = None,
    worst: int = 12,
    bootstrap: tuple[int, int] = (1000, 0),
    options: Sequence[str] = (),
) -> dict[str, Any]:
    """Write the report of one detector, or of two and their differences.

    Args:
        data: a config, a COCO annotation file, or the work dir of a run, whose net is then the first detector.
        results: COCO results files or work dirs of runs; with a run as ``data`` none or one, else one or two.
        out: HTML file.
        images: folder of the images of an annotation file; None: the page shows none.
        worst: images in each list.
        bootstrap: number of resamples, and their seed.
        options: overrides of the configs.

    Returns:
        All numbers, as plain values.

    Raises:
        InputError: data or results are not sound, or there are too few or too many.
    """
    sources = [*([data] if Path(data).is_dir() else []), *results]
    if len(sources) not in (1, 2):
        needed = "one or two: COCO results files or work dirs of runs"
        raise InputError(f"report on {data}", found=f"{len(sources)} detectors", needed=needed)
    opened = open_data(data, images=images, options=options)
    named = zip(_names(sources), sources, strict=True)
    detectors = {name: open_detections(source, opened, options=options) for name, source in named}
    record, judged = build_record(opened, detectors, worst=worst, resamples=bootstrap[0], seed=bootstrap[1])
    config = data if Path(data).suffix == ".py" else None
    files = {name: str(source) for name, source in zip(detectors, sources, strict=True)}
    record = {**record, "results": files, **provenance(config, None, seed=bootstrap[1])}
    record = {key: plain(value) for key, value in record.items()}
    html = render(record, _pictures(record, opened, judged))
    try:
        with replacing(out) as file:
            file.write(html.encode())
    except OSError as error:
        raise InputError(out, found=error.strerror or str(error), needed="a place that can be written") from error
    return record


def render(record: Mapping[str, Any], pictures: Mapping[tuple[str, int], list[dict[str, str]]]) -> str:
    """The page.

    Args:
        record: plain values.
        pictures: captions and data URIs, by the list (the detector's name, or "changed") and the image's id.
    """
    environment = Environment(
        loader=PackageLoader("resdet.inspection"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"points": _points, "log_share": _log_share}
    template = environment.get_template("report.html")
    return template.render(**record, pictures=pictures, meanings=COCO_MEANINGS, chart=CHART)


def _names(sources: Sequence[str | Path]) -> list[str]:
    """Short and different."""
    paths = [Path(source) for source in sources]
    names = [path.resolve().name if path.is_dir() else path.stem for path in paths]
    if len(set(names)) < len(names):
        names = [f"{path.resolve().parent.name}/{name}" for path, name in zip(paths, names, strict=True)]
    return names if len(set(names)) == len(names) else [f"{name} ({n})" for n, name in enumerate(names, 1)]


def _pictures(
    record: Mapping[str, Any], data: InspectedData, judged: Mapping[str, Judged]
) -> dict[tuple[str, int], list[dict[str, str]]]:
    """Truth and detections of every listed image, where there are images."""
    if data.files is None:
        return {}
    lists = {part["name"]: (part["worst_images"], [part["name"]]) for part in record["detectors"]}
    if record["comparison"]:
        lists["changed"] = record["comparison"]["changed_images"], list(judged)
    pictures = {}
    for list_name, (rows, names) in lists.items():
        for row in rows:
            place = int(np.searchsorted(data.truth.image_ids, row["image"]))
            image = torch.from_numpy(read_image(data.files[place])).permute(2, 0, 1)
            objects = data.truth.objects
            mine = (objects.images == place) & ~objects.crowd
            shown = [("truth", _drawn(image, objects.boxes[mine], objects.labels[mine], None, data.classes))]
            for name in names:
                outcomes, keep = judged[name].outcomes, judged[name].keep
                found, mine = outcomes.found, keep & (outcomes.found.images == place)
                parts = found.boxes[mine], found.labels[mine], found.scores[mine]
                shown.append((name, _drawn(image, *parts, data.classes)))
            pictures[list_name, row["image"]] = [{"caption": caption, "uri": uri} for caption, uri in shown]
    return pictures


def _drawn(
    image: torch.Tensor, boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray | None, classes: Sequence[str]
) -> str:
    """A small JPEG as a data URI; boxes are x, y, width, height."""
    corners = torch.from_numpy(np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1))
    sure = None if scores is None else torch.from_numpy(scores)
    picture = draw_detections(image, corners, torch.from_numpy(labels), sure, classes=classes)
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _points(ys: Iterable[float], xs: Iterable[float]) -> str:
    """The points of an SVG line, of values in [0, 1]."""
    width, height = CHART
    return " ".join(f"{x * width:.1f},{(1 - y) * height:.1f}" for x, y in zip(xs, ys, strict=True))


def _log_share(count: int, most: int) -> float:
    """Height of a bar on a logarithmic scale, of 1."""
    return math.log1p(count) / math.log1p(most) if most else 0.0
