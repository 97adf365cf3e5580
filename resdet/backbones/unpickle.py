"""Pickled files of arrays and containers, read without running anything that they name.

A pickle is a program: it names functions and calls them. Here each name is looked up in a short list instead of being
imported, and state is set on arrays and containers only, so no file can reach a function outside the list or alter one
on it. What a list lacks is refused by name.
"""

from __future__ import annotations

import _codecs
import pickle
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from resdet.errors import InputError


class Skipped:
    """Stands for an object that is of no use here: takes every argument and every state, and does nothing."""

    def __new__(cls, *_: object) -> Skipped:
        """Forget the arguments."""
        return super().__new__(cls)

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None:
        """Forget the state."""


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """How bytes are written for Python 2; other encodings would be looked up by importing them."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in encoding {encoding!r}")
    return _codecs.latin_1_encode(text)[0]


def _array(kind: type, shape: tuple[int, ...], code: bytes) -> np.ndarray:
    """The empty array that a state will fill."""
    if kind is not np.ndarray:
        raise pickle.UnpicklingError(f"an array of type {kind!r}")
    return np.ndarray.__new__(np.ndarray, shape, code)


def _scalar(dtype: np.dtype, content: bytes | str = b"") -> np.generic:
    if not isinstance(dtype, np.dtype) or dtype.hasobject:
        raise pickle.UnpicklingError(f"a number of type {dtype}")
    raw = content.encode("latin1") if isinstance(content, str) else content  # a text in files of Python 2
    return np.frombuffer(raw, dtype, count=1)[0]


def _buffer(content: Any, dtype: np.dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    return np.frombuffer(content, dtype).reshape(shape, order=order)


Admitted = dict[tuple[str, str], Callable]
"""What a name (module, attribute) in a file stands for."""

ARRAYS: Admitted = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _buffer for core in ("core", "_core")},
    **{
        (module, kind.__name__): kind
        for module in ("builtins", "__builtin__")  # Python 3 and 2
        for kind in (bytes, bytearray, set, frozenset, complex)
    },
}
"""Numpy's arrays and Python's containers; dict, list, tuple, numbers and texts need no name."""

TENSORS: Admitted = {
    **ARRAYS,
    ("collections", "Counter"): Counter,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    # The curves of mmengine's message hub, and how bound methods in it are written.
    ("mmengine.logging.history_buffer", "HistoryBuffer"): Skipped,
    ("builtins", "getattr"): Skipped,
    ("__builtin__", "getattr"): Skipped,
}
"""The same and tensors (torch.load looks up storages by itself)."""
DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
STATEFUL = (OrderedDict, np.ndarray, np.dtype, Tensor, Skipped)
"""Whose instances may be given a state."""


class ArrayUnpickler(pickle._Unpickler):  # the one in Python: the one in C cannot be told whose state may be set
    """Reads what :data:`ARRAYS` admits.

    Raises:
        pickle.UnpicklingError: the file names anything else.
    """

    admitted = ARRAYS

    def find_class(self, module: str, name: str) -> Any:
        """What a name stands for."""
        if (module, name) in self.admitted:
            return self.admitted[module, name]
        raise pickle.UnpicklingError(f"{module}.{name}")

    def load_build(self) -> None:
        """Set a state."""
        if not isinstance(self.stack[-2], STATEFUL):
            raise pickle.UnpicklingError(f"a state for {self.stack[-2]!r}")
        super().load_build()

    dispatch = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}  # noqa: RUF012 (pickle's own form)


class TensorUnpickler(ArrayUnpickler):
    """Reads what :data:`TENSORS` admits."""

    admitted = TENSORS

    def find_class(self, module: str, name: str) -> Any:
        """What a name stands for."""
        if module == "torch" and f"torch.{name}" in DTYPES:
            return DTYPES[f"torch.{name}"]
        return super().find_class(module, name)


class TensorPickle:
    """In place of the module ``pickle`` that torch.load would use."""

    __name__ = "pickle"
    Unpickler = TensorUnpickler

    @staticmethod
    def load(file: BinaryIO, **settings: Any) -> Any:
        """One object of a file, as in ``pickle.load``."""
        return TensorUnpickler(file, **settings).load()


def read_arrays(path: str | Path) -> Any:
    """The content of a ``.pkl`` file, with arrays as tensors.

    Raises:
        InputError: the file names anything but arrays and containers, or is damaged.
    """

    def read() -> Any:
        with Path(path).open("rb") as file:
            return ArrayUnpickler(file, encoding="latin1").load()  # texts of Python 2 hold bytes

    return _as_tensors(_refuse(read, path))


def read_tensors(path: str | Path) -> Any:
    """The content of a ``.pth`` file that also holds numpy arrays or mmengine's curves; the latter are left out.

    Raises:
        InputError: the file names anything but tensors, arrays and containers, or is damaged.
    """
    return _refuse(lambda: torch.load(path, "cpu", pickle_module=TensorPickle(), weights_only=False), path)


def _refuse(read: Callable[[], Any], path: str | Path) -> Any:
    try:
        return read()
    except pickle.UnpicklingError as error:
        found = f"objects that only unpickling could read, or no weights ({str(error).strip().splitlines()[0]})"
        needed = "a file of tensors alone: save the model's state_dict(), or use a published .safetensors file"
        raise InputError(path, found=found, needed=needed) from error
    except Exception as error:  # a damaged pickle calls with wrong arguments, which can fail in any way
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(path, found=f"damaged or not a weights file ({reason})", needed="a whole file") from error


def _as_tensors(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _as_tensors(value) for key, value in content.items()}
    if isinstance(content, (np.ndarray, np.number)) and not content.dtype.hasobject and content.dtype.kind in "biuf":
        native = np.array(content, dtype=content.dtype.newbyteorder("="))  # a copy: writable, of this machine's order
        return torch.from_numpy(native)
    return content
