"""Image files to uint8 RGB arrays: any depth, any colour space, and the right way up."""

from __future__ import annotations

import errno
import logging
import os
import struct
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from PIL import ExifTags, Image

from resdet.datasets.cut_short import END, LOST_ROWS, ends_filled, is_grey, jpeg_rows_lost, rows_lost
from resdet.errors import InputError

logger = logging.getLogger(__name__)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each EXIF orientation (Exif 2.3, tag 0x0112); from 5 on height and width change places."""
_DEEP = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")  # Pillow's modes of more than 8 bits
MAX_PIXELS = int(os.environ.get("RESDET_MAX_PIXELS", 250_000_000))
"""Of an image that is decoded; 3 bytes each. Pillow takes half of a scanner's sheet for an attack."""
Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, MAX_PIXELS)
FULL = 65_535
"""White of 16 and of 32 bits."""
NAMED = 5
"""Files without their last bytes that a process warns of."""
FAINT = 0.1
"""Least share of the range that deep pixels use without a warning."""

SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")
"""Endings of the files that count as images, in any case."""
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""Raster formats, the only ones opened: Pillow would hand PostScript in a file named ``photo.jpg`` to Ghostscript."""


def open_image(source: str | os.PathLike[str] | IO[bytes]) -> Image.Image:
    """A raster image, not yet decoded.

    Raises:
        OSError: another format; a pipe or a device, which could be waited for without end; more than ``MAX_PIXELS``.
    """
    if isinstance(source, (str, os.PathLike)) and os.path.exists(source) and not os.path.isfile(source):
        raise OSError("a folder, a pipe or a device")
    image = Image.open(source, formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        image.close()
        size = f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}"
        raise OSError(f"{size}: set RESDET_MAX_PIXELS if that is meant")
    return image


def read_image(path: str | os.PathLike[str], *, rotate: bool = True) -> np.ndarray:
    """Decode an image file.

    Grey-scale, palette, 1-bit, CMYK (Adobe's inverted kind too) and alpha images become RGB; alpha is dropped without
    blending. Deep pixels become 8 bits by one rule, see :func:`eight_bits`. Of several frames the first is read. A file
    that lacks its last bytes, but no rows, is read with a warning; one that lacks rows is not, closed or not.

    Args:
        path: anything Pillow reads: JPEG, PNG, TIFF, WebP, BMP, GIF and more.
        rotate: apply the EXIF orientation, as viewers do. False gives the pixels as stored (TIFF is always rotated).

    Returns:
        (H, W, 3) uint8 RGB, writable and contiguous.

    Raises:
        InputError: the file is missing, lacks rows, is no image, or has no defined 8-bit range.
    """
    return read_reduced(path, None, rotate=rotate)[0]


def read_reduced(
    path: str | os.PathLike[str], least_side: int | None, *, rotate: bool = True
) -> tuple[np.ndarray, tuple[int, int]]:
    """Decode an image file, a JPEG at 1/2, 1/4 or 1/8 of its size where both sides then are ``least_side`` or more.

    JPEG's decoder averages while it decodes, so a large photograph costs a fraction.

    Args:
        path: as for :func:`read_image`.
        least_side: in pixels; None: as it is.
        rotate: likewise.

    Returns:
        The image as :func:`read_image` returns it, sides divided by 1, 2, 4 or 8 and rounded up; (H, W) of the whole.

    Raises:
        InputError: as :func:`read_image`.
    """
    decoded = _decoded(path, least_side, rotate=rotate)
    if decoded.cut:
        _tell_cut(os.fspath(path))
    return decoded.pixels, decoded.whole_hw


def is_cut(path: str | os.PathLike[str]) -> bool:
    """Whether the last bytes of an image are missing, but no rows.

    Raises:
        InputError: as :func:`read_image`.
    """
    return _decoded(path, 1, rotate=False).cut


class _Decoded(NamedTuple):
    pixels: np.ndarray
    whole_hw: tuple[int, int]
    cut: bool


def _decoded(path: str | os.PathLike[str], least_side: int | None, *, rotate: bool) -> _Decoded:
    try:
        with open_image(path) as image:
            whole = image.size
            if least_side is not None:
                image.draft(None, (least_side, least_side))
            reduced, jpeg = image.size != whole, image.format in ("JPEG", "MPO")
            if not jpeg:
                image.load()  # TIFF and PNG know their orientation only then
            orientation = _orientation(image) if rotate else 1
            pixels, cut = None, False
            if jpeg and not reduced and orientation == 1 and image.mode in ("L", "RGB"):
                pixels = _decode_jpeg(path)
            if pixels is None:
                loaded, cut = _loaded(image, path, least_side)
                turned = loaded if orientation == 1 else loaded.transpose(_UPRIGHT[orientation])
                pixels = np.array(to_rgb(turned))
            if not reduced:
                return _Decoded(pixels, pixels.shape[:2], cut)
            return _Decoded(pixels, whole if orientation >= 5 else whole[::-1], cut)
    except Exception as error:  # Pillow's decoders raise whatever they stumble on: OSError, struct.error, SyntaxError …
        raise _undecodable(path, error) from error


@lru_cache(maxsize=1 << 16)  # once a file, though it is read in every epoch
def _tell_cut(path: str) -> None:
    number = _tell_cut.cache_info().misses
    more = "; further ones are not named" if number == NAMED else ""
    if number <= NAMED:
        logger.warning(
            "image %s: its last bytes are missing, and no more than its last %d rows%s", path, LOST_ROWS, more
        )


def _decode_jpeg(path: str | os.PathLike[str]) -> np.ndarray | None:
    """The pixels that Pillow would give, in two thirds of its time; None for a file that may not be sound."""
    try:
        import cv2
    except ImportError:  # an exported detector runs without it
        return None
    content = np.fromfile(path, dtype=np.uint8)
    if bytes(content[-2:]) != END:  # OpenCV would fill what is missing and say nothing
        return None
    try:
        pixels = cv2.imdecode(content, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None
    return None if pixels is None or is_grey(pixels[-1, -1]) else pixels


def image_size_hw(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(H, W) that :func:`read_image` will return, from the header alone (TIFF is decoded).

    Raises:
        InputError: the file is missing or not an image.
    """
    try:
        with open_image(path) as image:
            if image.format == "TIFF":
                image.load()  # Pillow turns TIFF while decoding, and its versions differ on the size before
            width, height = image.size
            return (width, height) if _orientation(image) >= 5 else (height, width)
    except Exception as error:
        raise _undecodable(path, error) from error


def image_orientation(path: str | os.PathLike[str]) -> int:
    """The EXIF orientation of an image file, 1 for upright."""
    with open_image(path) as image:
        return _orientation(image)


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG":  # may carry EXIF after the pixels, where getexif() looks at the price of decoding
        with open(image.filename, "rb") as file:
            content = file.read()
        if b"eXIf" not in content and b"Raw profile type exif" not in content:
            return 1
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, struct.error, ValueError):  # a damaged EXIF block orders no rotation, and the pixels are fine
        return 1
    return value if value in _UPRIGHT else 1


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB of 8 bits; alpha is dropped without blending.

    Raises:
        ValueError: values without a defined 8-bit range.
    """
    if image.mode in _DEEP:
        image = Image.fromarray(eight_bits(np.asarray(image), getattr(image, "filename", "")))
    elif "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def eight_bits(values: np.ndarray, source: object = "an array") -> np.ndarray:
    """Pixels of any depth as uint8: whole numbers by their high byte of 16, fractions times 255.

    Args:
        values: whole numbers from 0 to 65,535, or floats from 0 to 1; of uint8 they stay as they are.
        source: for the warning where less than a tenth of the range is used, as by 12 bits in a file of 16.

    Raises:
        ValueError: other values, which have no defined 8-bit range.
    """
    if values.dtype == np.uint8 or not values.size:
        return values.astype(np.uint8)
    low, high = values.min(), values.max()
    whole = values.dtype.kind in "iu"
    if not (low >= 0 and high <= (FULL if whole else 1)):
        needed = f"0 to {FULL}" if whole else "0 to 1, of floating-point pixels"
        raise ValueError(f"values from {low} to {high}, which have no defined 8-bit range: {needed}")
    if high < FAINT * (FULL if whole else 1) and high > 0:
        told = "%s: its brightest pixel is %s of %s, so it is nearly black: scale it to the whole range"
        logger.warning(told, source, high, FULL if whole else 1)
    return (values.astype(np.uint32) >> 8).astype(np.uint8) if whole else np.round(values * 255).astype(np.uint8)


def _loaded(image: Image.Image, path: str | os.PathLike[str], least_side: int | None) -> tuple[Image.Image, bool]:
    """An image with its pixels, and whether its last bytes are missing.

    Raises:
        OSError: rows are missing.
    """
    cut, lost = False, 0
    try:
        image.load()
    except OSError as error:
        if image.format not in ("JPEG", "MPO") or "truncated" not in str(error):
            raise
        content = Path(path).read_bytes() + END
        image, cut = Image.open(BytesIO(content), formats=("JPEG",)), True
        if least_side is not None:
            image.draft(None, (least_side, least_side))
        image.load()
        lost = jpeg_rows_lost(content)
    else:
        if image.format in ("JPEG", "MPO", "PNG") and ends_filled(image):
            lost = rows_lost(os.fspath(path), image.format == "PNG")
    if lost > (0 if image.format == "PNG" else LOST_ROWS):
        raise OSError(f"it is cut short: its last {lost} rows are missing")
    return image, cut or lost > 0


def _undecodable(path: str | os.PathLike[str], error: Exception) -> InputError:
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        raise error  # too many open files, which is no fault of the image
    if isinstance(error, FileNotFoundError):
        return InputError(f"image {os.fspath(path)}", found="no such file", needed="a readable image file")
    size = f"{os.path.getsize(path):,} bytes" if os.path.isfile(path) else "not a file"
    return InputError(
        f"image {os.fspath(path)}",
        found=f"does not decode ({size}; {type(error).__name__}: {error})",
        needed="a complete image of 8 or 16 bits per channel in a format Pillow reads",
    )
