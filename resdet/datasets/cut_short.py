"""Images that are closed although their end is missing: how many rows a JPEG or a PNG lacks.

Decoders fill what is missing and say nothing. A cheap look at the last pixels tells whether that may be so, and only
then the file is looked at again.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

GREY = 128
"""What a JPEG's decoder fills with, in every channel: blocks without data (up to a step of rounding)."""
END = b"\xff\xd9"
"""JPEG's end of image."""
NOISE = bytes(np.random.default_rng(0).integers(0, 255, 64, dtype=np.uint8))
"""More of a JPEG's data, without a marker."""
LOST_ROWS = 16
"""Rows at the lower edge of a JPEG that may be without content: those of its last blocks."""
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Of Adam7: first column and row, steps of columns and rows (PNG specification, 8.2)."""
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Of PNG's colour types."""


def ends_filled(image: Image.Image) -> bool:
    """Whether the last pixels of a decoded JPEG or PNG are what its decoder fills with."""
    if image.format == "PNG":
        last = image.crop((0, image.height - 1, image.width, image.height))
        return "interlace" in image.info or not np.asarray(last).any()
    return is_grey(np.array(image.getpixel((image.width - 1, image.height - 1))))


def is_grey(values: np.ndarray) -> bool:
    """Whether a JPEG's values are those of blocks without data."""
    return bool((np.abs(values.astype(np.int64) - GREY) <= 1).all())


def rows_lost(path: str, png: bool) -> int:
    """Rows at the lower edge of a closed file for which there are no data."""
    known = Path(path).stat()
    return _rows_lost(path, png, (known.st_size, known.st_mtime_ns))


@lru_cache(maxsize=1 << 16)  # black and grey pictures are no rarity, and each is read in every epoch
def _rows_lost(path: str, png: bool, state: tuple[int, int]) -> int:
    content = Path(path).read_bytes()
    return png_rows_lost(content) if png else jpeg_rows_lost(content)


def jpeg_rows_lost(content: bytes) -> int:
    """Rows at the lower edge of a closed JPEG for which there are no data.

    More data before the end change nothing in a whole image; one cut short takes them for the next blocks, so the first
    row that changes is where it ends.
    """
    end = content.find(END, _first_scan(content))
    grown = content[:end].rstrip(b"\xff") + NOISE + content[end:]  # half of a marker would make one of the noise
    image, other = (np.asarray(Image.open(BytesIO(each), formats=("JPEG",))) for each in (content, grown))
    changed = (image != other).reshape(len(image), -1).any(1)
    if not changed.any():
        return 0
    grey = np.array([is_grey(row) for row in image[::-1]])
    last = int(is_grey(image[-1, -1]))  # some blocks of a row
    return int(min(len(image) - changed.argmax(), len(grey) if grey.all() else max(last, grey.argmin())))


def _first_scan(content: bytes) -> int:
    """Where the data of a JPEG begin; a thumbnail before that has an end of its own."""
    place = 2
    while place + 4 <= len(content) and content[place + 1] != 0xDA:
        place += 1 if content[place + 1] == 0xFF else 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return place


def png_rows_lost(content: bytes) -> int:
    """Rows at the lower edge of a closed PNG for which there are no data; of an interlaced one all, if some are not."""
    width, height, bits, colour, _, _, interlaced = struct.unpack(">IIBBBBB", content[16:29])
    bits *= CHANNELS[colour]
    sizes = [(width, height)]
    if interlaced:
        sizes = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in PASSES]
    needed = sum(rows * (1 + -(-columns * bits // 8)) for columns, rows in sizes if columns > 0 and rows > 0)
    there = _inflated(content, needed)
    if there >= needed:
        return 0
    return height if interlaced else height - there * height // needed


def _inflated(content: bytes, needed: int) -> int:
    """How many bytes of rows a PNG has, ``needed`` at most."""
    inflate, there = zlib.decompressobj(), 0
    for part in _data_of(content):
        while part and there < needed and not inflate.eof:
            there += len(inflate.decompress(part, 1 << 20))
            part = inflate.unconsumed_tail
    return there


def _data_of(content: bytes) -> Iterator[bytes]:
    place = 8
    while place + 8 <= len(content):
        length, kind = struct.unpack(">I4s", content[place : place + 8])
        if kind == b"IDAT":
            yield content[place + 8 : place + 8 + length]
        place += 12 + length
