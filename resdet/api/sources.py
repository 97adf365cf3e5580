"""Where pictures come from: files, folders, patterns, videos, cameras and streams."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from resdet.datasets.images import SUFFIXES, read_image
from resdet.errors import InputError

VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
"""Endings of the files that count as videos, in any case."""
STREAMS = ("rtsp://", "rtmp://", "udp://", "tcp://")


class Frame(NamedTuple):
    """One picture."""

    source: str
    """The file, or the video, camera or stream."""
    number: int | None
    """Of a frame, from 0; None: a picture of its own."""
    pixels: Any
    """(3, H, W) uint8 RGB tensor; of :func:`array_frames` an (H, W, 3) array."""
    rate: float
    """Frames a second; 0 of pictures."""

    @property
    def name(self) -> str:
        """Of what is written about it, without ending."""
        stem = Path(self.source).stem or "stream"
        return stem if self.number is None else f"{stem}_{self.number:06d}"


def frames(sources: Sequence[str | Path | int]) -> Iterator[Frame | InputError]:
    """Pictures and frames, one by one; an error in the place of a file that does not decode.

    Args:
        sources: image and video files, folders (searched with all that is in them; hidden files are passed over),
            patterns, cameras by their number, addresses of streams.

    Raises:
        InputError: there is no such thing, or nothing in it.
    """
    import torch

    for frame in array_frames(sources):
        if isinstance(frame, InputError):
            yield frame
        else:
            yield frame._replace(pixels=torch.from_numpy(frame.pixels).permute(2, 0, 1))


def array_frames(sources: Sequence[str | Path | int]) -> Iterator[Frame | InputError]:
    """:func:`frames` of numpy arrays, without torch, and without OpenCV where there is no video."""
    for path in [path for source in sources for path in listed_sources(source)]:
        if isinstance(path, str) or path.suffix.lower() in VIDEOS:
            yield from _video(path)
            continue
        try:
            pixels = read_image(path)
        except InputError as error:
            yield error
        else:
            yield Frame(str(path), None, pixels, 0.0)


def listed_sources(source: str | Path | int) -> list[Path | str]:
    """The files of a source; cameras and streams as texts.

    Raises:
        InputError: there is none.
    """
    text = str(source)
    if (text.isdigit() and not Path(text).exists()) or text.startswith(STREAMS):
        return [text]
    needed = f"an image ({', '.join(SUFFIXES)}), a video ({', '.join(VIDEOS)}), a folder of them, a camera's number"
    if text.startswith(("http://", "https://")):
        raise InputError(text, found="an address of the web", needed=f"the file itself, downloaded: {needed}")
    path = Path(source) if not isinstance(source, int) else Path(text)
    if path.is_dir():
        kinds = SUFFIXES + VIDEOS
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in kinds and p.is_file())
        if found := [p for p in inside if not any(part.startswith(".") for part in p.relative_to(path).parts)]:
            return list(found)
        raise InputError(path, found="a folder without images", needed=needed)
    if path.exists():
        return [path]
    if any(sign in text for sign in "*?[") and (matching := sorted(glob.glob(text, recursive=True))):
        return [each for match in matching for each in listed_sources(Path(match))]
    raise InputError(path, found="no such file or folder", needed=needed)


def _video(source: Path | str) -> Iterator[Frame]:
    """The frames of a video file, a camera or a stream.

    Raises:
        InputError: it does not open, or has no frame.
    """
    import cv2

    capture = cv2.VideoCapture(int(source) if isinstance(source, str) and source.isdigit() else str(source))
    try:
        rate, number = capture.get(cv2.CAP_PROP_FPS), 0
        while capture.isOpened():
            there, pixels = capture.read()
            if not there:
                break
            yield Frame(str(source), number, cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), rate or 25.0)
            number += 1
    finally:
        capture.release()
    if not number:
        kind = "a video" if isinstance(source, Path) else "a camera or a stream"
        raise InputError(f"{kind}: {source}", found="no frame that OpenCV could read", needed=f"{kind} that is there")
