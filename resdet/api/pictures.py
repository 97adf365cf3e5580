"""What the functions of this room have in common: pictures of any kind, devices, settings of Python."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from resdet.datasets.images import eight_bits, read_image, to_rgb
from resdet.errors import InputError

Picture = str | Path | np.ndarray | Image.Image | Tensor
"""A path; an (H, W, 3) uint8 RGB array; a PIL image; a (3, H, W) uint8 RGB tensor."""


def plain_values(said: Mapping[str, object]) -> dict[str, object]:
    """Settings as Python gives them, in the types that settings have."""
    return {name: _plain(value) for name, value in said.items()}


def _plain(value: object) -> object:
    """A value of Python as settings take it: numpy's numbers and paths are no types of theirs."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_plain, value))
    if isinstance(value, np.generic):
        return value.item()
    return str(value) if isinstance(value, Path) else value


def usable_device(name: str | torch.device | None) -> torch.device:
    """The device of a name, or the GPU where there is one.

    Raises:
        InputError: torch does not know it, or this machine does not have it.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"device {str(name)!r}", found=reason, needed="cpu, or cuda on a machine with a GPU"
        ) from error
    return device


def to_tensor(picture: Picture) -> Tensor:
    """Any picture as a uint8 RGB (3, H, W) tensor.

    Raises:
        InputError: it is none, or its file does not decode.
    """
    if isinstance(picture, Tensor):
        return picture  # checked by Preprocess
    if isinstance(picture, Image.Image):
        picture = np.array(to_rgb(ImageOps.exif_transpose(picture)))
    elif isinstance(picture, (str, Path)):
        picture = read_image(str(picture))
    if isinstance(picture, np.ndarray) and picture.dtype.kind in "uif" and picture.dtype != np.uint8:
        try:
            picture = eight_bits(picture)
        except ValueError as error:
            raise InputError(
                "image", found=str(error), needed="uint8 RGB, whole numbers of 16 bits, or fractions of 1"
            ) from error
    if not isinstance(picture, np.ndarray) or picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        found = (
            f"{picture.dtype} of shape {picture.shape}" if isinstance(picture, np.ndarray) else type(picture).__name__
        )
        raise InputError("image", found=found, needed="a path, a PIL image, or uint8 RGB (H, W, 3) / (3, H, W)")
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))
