"""What a detector finds in files, folders, videos and streams, as pictures and in the forms that other tools read."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from resdet.api.detector import Detector
from resdet.api.sources import VIDEOS, Frame, frames, listed_sources
from resdet.api.writers import WRITERS, Writer
from resdet.engine.progress import shown
from resdet.errors import InputError, nearest
from resdet.structures import Detections

SURE = 0.5
"""Least score of what is drawn, unless another is asked for: configs' own is for evaluation."""


MakeWriter = Callable[[Path, Detector], Writer]
"""From the folder of the results and the detector, whose threshold is that of the call."""


class Inferred(NamedTuple):
    """What came of a call."""

    images: int
    """Pictures and frames that were looked at."""
    seconds: dict[str, float]
    """Per image, of each step."""
    unreadable: list[str]
    """What was wrong with each file that does not decode."""


def infer_files(
    config: str | Path | None,
    checkpoint: str | Path,
    images: Sequence[str | Path],
    *,
    out: str | Path,
    save: Sequence[str | MakeWriter] = ("pictures", "coco"),
    score_threshold: float | None = None,
    device: str | None = None,
    batch_size: int = 1,
    options: Sequence[str] = (),
) -> Inferred:
    """Detect in files, folders, patterns, videos, cameras and streams, and write what is found as it comes.

    Without a ``score_threshold``, and without one in section ``test`` of the net's config, it is :data:`SURE`. A file
    that does not decode is named and passed over.

    Args:
        config: that the net was trained with; None: the checkpoint tells.
        checkpoint: last.pth, best.pth or a published file.
        images: see :func:`resdet.api.sources.frames`.
        out: folder of the results.
        save: names of :data:`resdet.api.writers.WRITERS`, or what makes further writers; none: nothing is written.
        score_threshold: least score of a detection.
        device: the GPU where there is one.
        batch_size: images at a time.
        options: overrides of the config.

    Raises:
        InputError: there is no such source or writer.
    """
    if batch_size < 1:
        raise InputError("batch size", found=batch_size, needed="at least 1")
    for name in save:
        if isinstance(name, str) and name not in WRITERS:
            raise InputError("--save", found=repr(name), needed=nearest(name, WRITERS))
    own = Path(out).resolve()  # pictures of an earlier call are no input
    sources = [s for image in images for s in listed_sources(image) if own not in Path(s).resolve().parents]
    parts = (checkpoint,) if config is None else (config, checkpoint)
    detector = Detector(*parts, device=device, score_threshold=score_threshold, options=options)
    net = detector.net
    if score_threshold is None and net.settings.score_threshold is None:
        net.suppression = net.suppression._replace(score_threshold=SURE)
    net.clock.wait = True
    own.mkdir(parents=True, exist_ok=True)
    moving = any(isinstance(source, str) or source.suffix.lower() in VIDEOS for source in sources)
    pictures = iter(shown(frames(sources), None if moving else len(sources), "looking"))
    with ExitStack() as closing:
        writers = []
        for make in dict.fromkeys(save):
            known = WRITERS[make] if isinstance(make, str) else None
            writers.append(known(own, detector.classes, detector.category_ids) if known else make(own, detector))
            closing.callback(writers[-1].close)
        number, unreadable = _write(detector, pictures, writers, batch_size)
    return Inferred(number, {step: s / max(1, number) for step, s in net.clock.seconds.most_common()}, unreadable)


def _write(
    detector: Detector, pictures: Iterator[Frame | InputError], writers: Sequence[Writer], batch_size: int
) -> tuple[int, list[str]]:
    """Number of pictures looked at, and what was wrong with the others."""
    asked = detector.net.suppression.score_threshold
    least = [asked if writer.least is None else writer.least for writer in writers]
    detector.net.suppression = detector.net.suppression._replace(score_threshold=min([asked, *least]))
    number, taken, unreadable = 0, set[str](), []
    while chunk := list(islice(pictures, batch_size)):
        for error in (each for each in chunk if isinstance(each, InputError)):
            unreadable.append(f"{error.where}: {error.found}")
            print(f"passed over: {unreadable[-1]}", file=sys.stderr)
        seen = [each for each in chunk if isinstance(each, Frame)]
        for frame, answer in zip(seen, detector([frame.pixels for frame in seen]), strict=True):
            number += 1
            name = _free_name(frame.name, taken)
            for writer, score in zip(writers, least, strict=True):
                writer.add(number, name, frame, Detections(*(part[answer.scores > score] for part in answer)))
    return number, unreadable


def _free_name(stem: str, taken: set[str]) -> str:
    """The name of a picture's files; images of one name in several folders get numbers."""
    name, number = stem, 0
    while name in taken:
        number += 1
        name = f"{stem}_{number}"
    taken.add(name)
    return name
