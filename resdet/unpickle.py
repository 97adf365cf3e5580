"""Pickled weights, read without running anything that a file names.

A pickle is a program: it names functions and calls them with what it likes. In a file of numpy's arrays a name is
looked up in a list of a dozen (:data:`NAMES`); what is on it makes arrays, bytes and containers of what the file holds,
and refuses all else. Files of tensors are left to torch's own reader of weights alone, which has such a list too.
"""

from __future__ import annotations

import io
import pickle
import re
import warnings
from collections import OrderedDict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch

from resdet.errors import InputError


def _bytes(content: str | bytes = b"", encoding: str = "latin1") -> bytes:
    """Those of Python 2 are a text. A number would be a length, and another encoding would be imported."""
    if not isinstance(content, (str, bytes)) or encoding not in ("latin1", "latin-1"):
        raise UnpicklingError(f"bytes of a {type(content).__name__}, or of a text not in latin1")
    return content.encode("latin1") if isinstance(content, str) else content


def _dtype(code: str, align: bool = False, copy: bool = True) -> np.dtype:
    """A type of booleans, numbers or texts, always a copy: a state will be set on it."""
    if not isinstance(code, str) or not re.fullmatch(r"[biufcSU][1-9]\d{0,8}", code):
        raise UnpicklingError(f"numbers of type {code if isinstance(code, str) else type(code).__name__}")
    return np.dtype(code, copy=True)


def _set_byte_order(dtype: np.dtype, version: int, order: str, *rest: Any) -> None:
    """The rest (base, names, fields, size, alignment, flags) must be as it is."""
    own = (None, None, None, dtype.itemsize, dtype.alignment, dtype.flags)
    if version != 3 or order not in ("<", ">", "|", "=") or rest not in (own, (None, None, None, -1, -1, 0)):
        raise UnpicklingError(f"a state for the type {dtype}")
    dtype.__setstate__((version, order, *rest))


def _array(kind: None, shape: tuple[int], code: str) -> np.ndarray:
    if kind is not NAMES["numpy.ndarray"] or shape != (0,):
        raise UnpicklingError("an array that is not empty before its state is set")
    return np.empty(0, np.int8)


def _fill(array: np.ndarray, version: int, shape: tuple, dtype: np.dtype, fortran: bool, content: str | bytes) -> None:
    if array.size or not all(type(side) is int and side >= 0 for side in shape):  # filled: others may look at it
        raise UnpicklingError("a second state for an array, or one without a shape")
    array.__setstate__((1, shape, dtype, bool(fortran), _bytes(content)))


def _buffer(content: str | bytes, dtype: np.dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    if not isinstance(dtype, np.dtype):
        raise UnpicklingError(f"numbers of type {type(dtype).__name__}")
    return np.frombuffer(_bytes(content), dtype).reshape(shape, order=order)


NAMES: dict[str, Any] = {
    "_codecs.encode": _bytes,
    "builtins.bytearray": _bytes,
    "builtins.bytes": _bytes,
    **{f"builtins.{kind.__name__}": kind for kind in (complex, frozenset, set)},
    "collections.OrderedDict": OrderedDict,
    "numpy.dtype": _dtype,
    "numpy.ndarray": None,  # called, it would take bytes for addresses of objects
    "numpy.core.multiarray._reconstruct": _array,
    "numpy.core.multiarray.scalar": lambda dtype, content: _buffer(content, dtype, (), "C")[()],
    "numpy.core.numeric._frombuffer": _buffer,
}
"""What a name stands for. Dict, list, tuple, numbers and texts need none."""
UNUSED = pickle.INST + pickle.OBJ + pickle.NEWOBJ + pickle.NEWOBJ_EX + pickle.EXT1 + pickle.EXT2 + pickle.EXT4
UNUSED += pickle.PERSID + pickle.BINPERSID + pickle.NEXT_BUFFER + pickle.READONLY_BUFFER
"""Instructions that no array needs: other ways to make objects, and what lies outside the file."""


class ArrayUnpickler(pickle._Unpickler):  # in Python: the one in C sets any state, and reserves memory as it is told
    """Reads numpy's arrays and Python's containers."""

    def find_class(self, module: str, name: str) -> Any:
        """What a name stands for, of Python 2 or 3 and of numpy 1 or 2."""
        full = f"{module}.{name}".replace("__builtin__.", "builtins.", 1).replace("numpy._core.", "numpy.core.", 1)
        if full not in NAMES:
            raise UnpicklingError(f"{module}.{name}")
        return NAMES[full]

    def load_build(self) -> None:
        """Set the state of an array or of its type; that of a container, attributes, is of no use."""
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, (np.ndarray, np.dtype, OrderedDict)):
            raise UnpicklingError(f"a state for a {type(target).__name__}")
        if not isinstance(target, OrderedDict):
            (_fill if isinstance(target, np.ndarray) else _set_byte_order)(target, *state)

    dispatch = {code: load for code, load in pickle._Unpickler.dispatch.items() if code not in UNUSED}  # noqa: RUF012
    dispatch |= {pickle.BUILD[0]: load_build, pickle.BYTEARRAY8[0]: pickle._Unpickler.load_binbytes8}


class Skipped:
    """Stands for an object that is of no use here: takes every argument and every state, and does nothing."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


SKIPPED = ["mmengine.logging.history_buffer.HistoryBuffer", "builtins.getattr"]  # its curves, and their bound methods
SKIPPED += [name.replace("core", core) for name in NAMES for core in ("core", "_core")]
"""What training scripts keep beside the weights; of containers and bytes torch reads those that it knows."""


def read_pickled(path: Path) -> Any:
    """The content of a ``.pkl`` file of numpy's arrays, or of a ``.pth`` file of tensors, in which arrays are skipped.

    Raises:
        InputError: the file names anything else, or is damaged.
    """
    try:
        if path.suffix == ".pkl":
            return ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()  # texts of Python 2: bytes
        with warnings.catch_warnings(), torch.serialization.safe_globals([(Skipped, name) for name in SKIPPED]):
            warnings.simplefilter("ignore")  # of another protocol and of TorchScript, which torch refuses as well
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        told = re.search(r"GLOBAL (\S+)", str(error)) or re.search(r"WeightsUnpickler error:\s+(.+)", str(error))
        found = f"objects that only unpickling could read, or no weights ({_shorten(told[1] if told else error)})"
        needed = "a file of tensors alone: save the model's state_dict(), or use a published .safetensors file"
        raise InputError(path, found=found, needed=needed) from error
    except Exception as error:  # a damaged pickle calls with wrong arguments, which can fail in any way
        found = f"damaged or not a weights file ({_shorten(error)})"
        raise InputError(path, found=found, needed="a whole file") from error


def reason_of(error: Exception) -> str:
    """Why torch did not load a file, in a few words of ours: its own are a page, and advise to unpickle."""
    text = str(error)
    if named := re.search(r"GLOBAL (\S+)", text):
        return f"objects that only unpickling could read ({named[1]})"
    if isinstance(error, UnpicklingError | EOFError) or "Weights only load failed" in text:
        return "damaged, or no file of tensors"
    if any(word in text for word in ("PytorchStreamReader", "inline_container", "zip archive")):
        return "damaged: not a whole archive"
    return _shorten(error)


def _shorten(reason: Exception | str) -> str:
    return (str(reason).strip() or type(reason).__name__).splitlines()[0][:200]
