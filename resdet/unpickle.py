"""Pickled files of arrays and containers, read without running anything that they name.

A pickle is a program: it names functions and calls them with what it likes. Here each name is looked up in a short list
instead of being imported, what is on the list takes only what arrays and tensors are written with, and a state is set
once on an empty array, else only on types of numbers (their byte order). So no file can reach a function outside the
list, alter one on it, or lay out memory. What a list lacks is refused by name.
"""

from __future__ import annotations

import _codecs
import pickle
import re
import tarfile
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch.serialization import StorageType

from resdet.errors import InputError


class Skipped:
    """Stands for an object that is of no use here: takes every argument and every state, and does nothing."""

    def __new__(cls, *_: object) -> Skipped:
        """Forget the arguments."""
        return super().__new__(cls)

    def __init__(self, *_: object) -> None: ...


class ArrayName:
    """Stands for the name ``numpy.ndarray``; called, that would make an array of any bytes: objects at any address."""

    __new__ = None  # only _array knows what to do with it


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """How bytes are written for Python 2; other encodings would be looked up by importing them."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes in encoding {encoding!r}")
    return _codecs.latin_1_encode(text)[0]


def _bytes(content: bytes | str = b"", encoding: str = "latin1") -> bytes:
    """A number would be a length, and reserve that much."""
    if isinstance(content, str):
        return _encode(content, encoding)
    if type(content) not in (bytes, bytearray):
        raise pickle.UnpicklingError(f"bytes of a {type(content).__name__}")
    return bytes(content)


def _bytearray(content: bytes | str = b"", encoding: str = "latin1") -> bytearray:
    return bytearray(_bytes(content, encoding))


def _dtype(code: str | bytes, align: bool = False, copy: bool = True) -> np.dtype:
    """A type of booleans, numbers or texts, never the one that numpy keeps for all: a state is set on it."""
    code = code.decode("latin1") if isinstance(code, bytes) else code
    if not isinstance(code, str) or not re.fullmatch(r"[biufcSU]\d{1,9}", code):
        raise pickle.UnpicklingError(f"numbers of type {code!r}")
    return np.dtype(code, copy=True)


def _array(kind: type, shape: tuple[int, ...], code: bytes | str) -> np.ndarray:
    """The empty array that a state will fill."""
    if kind is not ArrayName or shape != (0,):
        raise pickle.UnpicklingError(f"an array of type {kind!r} and shape {shape!r}")
    return np.empty(0, np.int8)


def _scalar(dtype: np.dtype, content: bytes | str = b"") -> np.generic:
    return np.frombuffer(_bytes(content), _checked(dtype), count=1)[0]  # a text in files of Python 2


def _buffer(content: bytes | bytearray, dtype: np.dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    return np.frombuffer(_bytes(content), _checked(dtype)).reshape(shape, order=order)


def _checked(dtype: Any) -> np.dtype:
    if not isinstance(dtype, np.dtype) or dtype.hasobject or dtype.fields or dtype.subdtype:
        raise pickle.UnpicklingError(f"numbers of type {dtype!r}")
    return dtype


def _storage(storage: Any) -> torch.TypedStorage:
    if not isinstance(storage, torch.TypedStorage):
        raise pickle.UnpicklingError(f"a tensor over a {type(storage).__name__}")
    return storage


def _tensor(storage: Any, offset: int, size: tuple, stride: tuple) -> Tensor:
    return torch._utils._rebuild_tensor(_storage(storage), offset, size, stride)


def _tensor_v2(
    storage: Any, offset: int, size: tuple, stride: tuple, grad: bool, hooks: Any, metadata: dict | None = None
) -> Tensor:
    """The same, its hooks left out: they are functions to call."""
    return torch._utils._rebuild_tensor_v2(_storage(storage), offset, size, stride, bool(grad), OrderedDict(), metadata)


def _parameter(data: Any, grad: bool, hooks: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise pickle.UnpicklingError(f"a parameter of a {type(data).__name__}")
    return torch._utils._rebuild_parameter(data, bool(grad), OrderedDict())


def _set_array(array: np.ndarray, state: Any) -> None:
    _, shape, dtype, fortran, content = state
    if array.size or not all(type(side) is int and side >= 0 for side in shape):  # filled: others may look at it
        raise pickle.UnpicklingError(f"a second state for an array, or one of shape {shape!r}")
    array.__setstate__((1, shape, _checked(dtype), bool(fortran), _bytes(content)))


def _set_byte_order(dtype: np.dtype, state: Any) -> None:
    """Of (version, byte order, base, names, fields, size, alignment, flags) all but the first two are as they are."""
    version, order, *rest = state
    own = [None, None, None, dtype.itemsize, dtype.alignment, dtype.flags]
    if version != 3 or order not in ("<", ">", "|", "=") or rest not in (own, [None, None, None, -1, -1, 0]):
        raise pickle.UnpicklingError(f"a state {state!r} for the type {dtype}")
    dtype.__setstate__((version, order, *rest))


def _forget(target: object, state: Any) -> None:
    """Attributes of containers are of no use here."""


Admitted = dict[tuple[str, str], Callable]
"""What a name (module, attribute) in a file stands for."""

ARRAYS: Admitted = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
    ("numpy", "ndarray"): ArrayName,
    ("numpy", "dtype"): _dtype,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _buffer for core in ("core", "_core")},
    **{
        (module, name): kind
        for module in ("builtins", "__builtin__")  # Python 3 and 2
        for name, kind in {
            **{"bytes": _bytes, "bytearray": _bytearray},
            **{kind.__name__: kind for kind in (set, frozenset, complex)},
        }.items()
    },
}
"""Numpy's arrays and Python's containers; dict, list, tuple, numbers and texts need no name."""

TENSORS: Admitted = {
    **ARRAYS,
    ("collections", "Counter"): Counter,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor_v2,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    # The curves of mmengine's message hub, and how bound methods in it are written.
    ("mmengine.logging.history_buffer", "HistoryBuffer"): Skipped,
    ("builtins", "getattr"): Skipped,
    ("__builtin__", "getattr"): Skipped,
}
"""The same and tensors (torch.load looks up storages by itself)."""
DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
STATES = {np.ndarray: _set_array, np.dtype: _set_byte_order, OrderedDict: _forget, Skipped: _forget}
"""Whose instances may be given a state, and how."""
UNUSED = ("INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID", "NEXT_BUFFER", "READONLY_BUFFER")
"""Instructions that no file of arrays needs; the extensions would come from a list outside."""


def _unused(name: str) -> Callable[[pickle._Unpickler], None]:
    def refuse(_: pickle._Unpickler) -> None:
        raise pickle.UnpicklingError(f"the instruction {name}")

    return refuse


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
        state, target = self.stack.pop(), self.stack[-1]
        setter = next((setter for kind, setter in STATES.items() if isinstance(target, kind)), None)
        if setter is None:
            raise pickle.UnpicklingError(f"a state for {target!r}")
        setter(target, state)

    def load_newobj(self) -> None:
        """Make an object without calling its class: those that are skipped are written so."""
        if self.stack[-2] is not Skipped:
            raise pickle.UnpicklingError(f"a new {self.stack[-2]!r}")
        super().load_newobj()

    def load_binpersid(self) -> None:
        """What lies outside the pickle: the storages of tensors, which torch reads, and nothing else."""
        match self.stack[-1]:
            case ("storage" | b"storage", StorageType(), str() | bytes(), str() | bytes(), int() as count, *view) if (
                count >= 0 and view in ([], [None])
            ):
                super().load_binpersid()
            case other:
                raise pickle.UnpicklingError(f"the persistent id {other!r}")

    dispatch = {  # noqa: RUF012 (pickle's own form)
        **pickle._Unpickler.dispatch,
        pickle.BUILD[0]: load_build,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.BINPERSID[0]: load_binpersid,
        **{getattr(pickle, name)[0]: _unused(name) for name in UNUSED},
    }


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

    def read() -> Any:
        if tarfile.is_tarfile(path):  # of before 2017: torch would unpack it, links and all
            raise pickle.UnpicklingError("a tar")
        with warnings.catch_warnings():  # of TorchScript: torch would hand over to the reader of its programs
            warnings.filterwarnings("error", ".*looks like a TorchScript archive")
            return torch.load(path, "cpu", pickle_module=TensorPickle(), weights_only=False)

    return _refuse(read, path)


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
