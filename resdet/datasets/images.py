"""Image files to uint8 RGB arrays: any depth, any colour space, and the right way up."""

from __future__ import annotations

import os
import struct
from typing import IO

import numpy as np
from PIL import ExifTags, Image

from resdet.errors import InputError

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
_DEEP = ("I", "I;16", "I;16L", "I;16B", "I;16N")  # Pillow's modes of more than 8 bits that hold integers


SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")
"""Endings of the files that count as images, in any case."""
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""Raster formats, the only ones opened: Pillow would hand PostScript in a file named ``photo.jpg`` to Ghostscript."""


def open_image(source: str | os.PathLike[str] | IO[bytes]) -> Image.Image:
    """A raster image, not yet decoded.

    Raises:
        OSError: another format; a pipe or a device, which could be waited for without end.
    """
    if isinstance(source, (str, os.PathLike)) and os.path.exists(source) and not os.path.isfile(source):
        raise OSError("a folder, a pipe or a device")
    return Image.open(source, formats=FORMATS)


def read_image(path: str | os.PathLike[str], *, rotate: bool = True) -> np.ndarray:
    """Decode an image file.

    Grey-scale, palette, 1-bit, CMYK (Adobe's inverted kind too) and alpha images become RGB; alpha is dropped without
    blending. 16-bit images keep their high byte (65535 becomes 255). Of several frames the first is read.

    Args:
        path: anything Pillow reads: JPEG, PNG, TIFF, WebP, BMP, GIF and more.
        rotate: apply the EXIF orientation, as viewers do. False gives the pixels as stored (TIFF is always rotated).

    Returns:
        (H, W, 3) uint8 RGB, writable and contiguous.

    Raises:
        InputError: the file is missing, truncated, not an image, or has no defined 8-bit range.
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
    try:
        with open_image(path) as image:
            whole = image.size
            if least_side is not None:
                image.draft(None, (least_side, least_side))
            reduced, jpeg = image.size != whole, image.format in ("JPEG", "MPO")
            if not jpeg:
                image.load()  # TIFF and PNG know their orientation only then
            orientation = _orientation(image) if rotate else 1
            pixels = None
            if jpeg and not reduced and orientation == 1 and image.mode in ("L", "RGB"):
                pixels = _decode_jpeg(path)
            if pixels is None:
                image.load()
                turned = image if orientation == 1 else image.transpose(_UPRIGHT[orientation])
                pixels = np.array(_to_rgb(turned))
            if not reduced:
                return pixels, pixels.shape[:2]
            return pixels, whole if orientation >= 5 else whole[::-1]
    except Exception as error:  # Pillow's decoders raise whatever they stumble on: OSError, struct.error, SyntaxError …
        raise _undecodable(path, error) from error


def _decode_jpeg(path: str | os.PathLike[str]) -> np.ndarray | None:
    """The pixels that Pillow would give, in two thirds of its time; None for a file that may not be sound."""
    try:
        import cv2
    except ImportError:  # an exported detector runs without it
        return None
    content = np.fromfile(path, dtype=np.uint8)
    if bytes(content[-2:]) != b"\xff\xd9":  # no end of image: OpenCV would fill what is missing and say nothing
        return None
    try:
        return cv2.imdecode(content, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None


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


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _DEEP:
        values = np.asarray(image)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise ValueError(f"values from {values.min()} to {values.max()}")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point pixels, which have no defined 8-bit range")
    elif "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _undecodable(path: str | os.PathLike[str], error: Exception) -> InputError:
    if isinstance(error, FileNotFoundError):
        return InputError(f"image {os.fspath(path)}", found="no such file", needed="a readable image file")
    size = f"{os.path.getsize(path):,} bytes" if os.path.isfile(path) else "not a file"
    return InputError(
        f"image {os.fspath(path)}",
        found=f"does not decode ({size}; {type(error).__name__}: {error})",
        needed="a complete image of 8 or 16 bits per channel in a format Pillow reads",
    )
