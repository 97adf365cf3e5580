"""Published weights: safetensors with one JSON object of facts and a checksum in the header."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from resdet.errors import InputError
from resdet.files import replacing, sha256

HEADER_KEY = "resdet"
DIGEST_KEY = "sha256"


def packaged_weights(name: str) -> Path | None:
    """Weights that come with the package (docs/pretrained.md); None where a net has none."""
    path = Path(__file__).parent / f"{name}.safetensors"
    return path if path.is_file() else None


def read_published(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of a ``.safetensors`` file; ours are compared with their checksum.

    Raises:
        InputError: damaged, or no such file.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            content = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no mapping)
            header = file.metadata() or {}
        facts = json.loads(header.get(HEADER_KEY, "{}"))
    except (SafetensorError, RuntimeError, OSError, ValueError) as error:
        found = f"damaged or not a weights file ({error})"
        raise InputError(path, found=found, needed="a whole weights file") from error
    published = header.get(DIGEST_KEY)
    if published is not None and published != digest(content):
        found = "damaged: its tensors are not those that were published"
        raise InputError(path, found=found, needed="a whole copy of it")
    return content, facts


def publish(path: str | Path, state: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Path:
    """Write weights and facts as safetensors, whole or not at all: a full disk leaves the old file.

    Args:
        path: ends in ``.safetensors``.
        state: written contiguous, from any device.
        metadata: anything JSON can hold; ``backbone`` is checked by :func:`init_backbone`.

    Returns:
        The path.

    Raises:
        InputError: another suffix, or the disk refuses.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(path, found=f"suffix {path.suffix!r}", needed="a name that ends in .safetensors")
    tensors = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in state.items()}
    header = {"format": "pt", HEADER_KEY: json.dumps(dict(metadata)), DIGEST_KEY: digest(tensors)}
    content = safetensors.torch.save(tensors, header)
    try:
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        needed = f"a writable folder with {len(content) / 2**20:.0f} MiB free; an older file of that name is untouched"
        raise InputError(path, found=error.strerror or str(error), needed=needed) from error
    return path


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names and bytes of tensors; safetensors has no checksum of its own."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(tensors[name].contiguous().view(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def file_hash(path: str | Path) -> str:
    """The first 8 hexadecimal digits of a file's SHA-256, as in names of published weights."""
    return sha256(path)[:8]
