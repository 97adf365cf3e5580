from __future__ import annotations

import builtins
import copyreg
import io
import os
import pickle
import struct
import tarfile
import tracemalloc
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from torch.testing import assert_close

from resdet.backbones.weights import read_weights
from resdet.errors import InputError
from resdet.unpickle import NAMES, ArrayUnpickler, Skipped, read_pickled


class Call:
    """Pickles as a call: loading it with plain pickle would make it."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile(path):
    """One call each that would leave a trace at ``path``."""
    return {
        "system": Call(os.system, f"touch {path}"),
        "eval": Call(builtins.eval, f"open({str(path)!r}, 'w')"),
        "exec": Call(builtins.exec, f"open({str(path)!r}, 'w')"),
        "open": Call(builtins.open, str(path), "w"),
        "mkdir": Call(os.mkdir, str(path)),
        "getattr": Call(builtins.getattr, (1,), "count"),
        "tofile": Call(np.ndarray.tofile, np.zeros(3), str(path)),
        "fromfile": Call(np.fromfile, str(path)),
        "load": Call(torch.load, str(path)),
    }


def dump(path, content, protocol=2):
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big_endian": np.arange(3, dtype=">f4"),
    "scalar": np.float64(1.5),
    "empty": np.zeros((0, 4)),
    "flags": np.array([True, False]),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_containers_come_back(tmp_path, protocol):
    content = {
        "model": ARRAYS,
        "ordered": OrderedDict(x=1),
        "plain": [None, True, 3, 2.5, "ä", b"bytes", (1, 2), {1, 2}, frozenset({3}), 1j],
    }
    path = dump(tmp_path / "a.pkl", content, protocol)
    read, (weights, _) = read_pickled(path), read_weights(path)
    assert read["ordered"] == content["ordered"] and read["plain"] == content["plain"]
    for key, value in ARRAYS.items():
        np.testing.assert_array_equal(read["model"][key], value)
        native = np.array(value, dtype=np.asarray(value).dtype.newbyteorder("="))
        assert_close(weights[key], torch.from_numpy(native))
    weights["a"].add_(1)  # writable


def python2_array(array: np.ndarray) -> bytes:
    """What Python 2 and an old numpy write: texts for bytes, ``numpy.core``."""
    shape = b"".join(b"K" + bytes([n]) for n in array.shape)
    dtype = b"cnumpy\ndtype\nU\x02" + array.dtype.str[1:].encode() + b"K\x00K\x01\x87R"
    dtype += b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    data = b"T" + struct.pack("<i", array.nbytes) + array.tobytes()
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
    return empty + b"(K\x01(" + shape + b"t" + dtype + b"\x89" + data + b"tb"


def test_files_of_python_2(tmp_path):
    values = np.array([[1.5, -2.0], [3e10, 4.0]], dtype=np.float32)  # bytes above 127 among them
    content = b"\x80\x02}(U\x07conv1_w" + python2_array(values) + b"u."
    (tmp_path / "a.pkl").write_bytes(content)
    assert_close(read_weights(tmp_path / "a.pkl")[0], {"conv1_w": torch.from_numpy(values)})


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"model": s, "__author__": "x"}, lambda s: {"blobs": s, "cfg": "text"}]
)
def test_envelopes_of_pickled_files(tmp_path, wrap):
    read, facts = read_weights(dump(tmp_path / "a.pkl", wrap({"a": ARRAYS["a"]})))
    assert_close(read, {"a": torch.from_numpy(ARRAYS["a"])})
    assert facts == {}


@pytest.mark.parametrize("attack", [*hostile("x")])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_nothing_is_executed_from_a_pkl(tmp_path, attack, protocol):
    trace = tmp_path / "made"
    path = dump(tmp_path / "a.pkl", {"model": ARRAYS, "more": hostile(trace)[attack]}, protocol)
    with pytest.raises(InputError, match=r"a\.pkl\n  found:  objects that only unpickling could read") as caught:
        read_weights(path)
    assert "needed: a file of tensors alone" in str(caught.value)
    names = {"system": "posix.system", "mkdir": "posix.mkdir", "open": "io.open", "tofile": "getattr"}
    assert names.get(attack, attack) in str(caught.value)
    assert not trace.exists()


@pytest.mark.parametrize("attack", [name for name in hostile("x") if name != "getattr"])  # which stands for nothing
@pytest.mark.parametrize("form", ["zip", "protocol-4", "legacy", "bare"])
def test_nothing_is_executed_from_a_pth(tmp_path, attack, form):
    trace, path = tmp_path / "made", tmp_path / "a.pth"
    content = {"state_dict": {"a": torch.ones(2)}, "more": hostile(trace)[attack]}
    if form == "bare":
        dump(path, content["more"])
    else:
        protocol = 4 if form == "protocol-4" else 2  # "builtins", and Python 2's "__builtin__"
        torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=form != "legacy")
    names = {"system": r"posix\.system", "mkdir": r"posix\.mkdir", "open": r"io\.open"}
    names["tofile"] = "reduce for unrecognized function .*Skipped"  # what getattr gave
    told = {"protocol-4": "Unsupported operand 149"}.get(form, names.get(attack, attack))
    with pytest.raises(InputError, match=rf"a\.pth\n  found:  .*({told})"):
        read_weights(path)
    assert not trace.exists()


def test_attributes_of_admitted_names_are_not_reached():
    for name in ("ndarray.tofile", "ndarray.__class__", "dtype.__init__"):
        with pytest.raises(pickle.UnpicklingError, match=f"numpy.{name}"):
            ArrayUnpickler(
                io.BytesIO(b"\x80\x04\x8c\x05numpy\x8c" + bytes([len(name)]) + name.encode() + b"\x93.")
            ).load()


@pytest.mark.parametrize("name", [b"_codecs\nencode", b"numpy\ndtype", b"collections\nOrderedDict"])
def test_admitted_functions_are_not_altered(name):
    with pytest.raises(pickle.UnpicklingError, match="a state for"):
        run(b"c" + name + b"\n}X\x04\x00\x00\x00evilK\x01sb")  # BUILD with {"evil": 1}
    assert not any(hasattr(stands_for, "evil") for stands_for in NAMES.values())


@pytest.mark.parametrize(
    ("program", "found"),
    [
        (
            b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R.",
            "bytes of a str, or of a text not in latin1",
        ),
        (b"cnumpy.core.multiarray\n_reconstruct\n(cbuiltins\nset\nK\x00\x85U\x01btR.", "an array that is not empty"),
        # A number of type "object" would be an address.
        (b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nU\x01O\x85RU\x0812345678\x86R.", "numbers of type O"),
        (b"\x82\x01.", "damaged"),  # EXT1
        (b"X\x01\x00\x00\x00aQ.", "damaged"),  # BINPERSID
    ],
)
def test_odd_programs_are_refused(tmp_path, program, found):
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02" + program)
    with pytest.raises(InputError, match=rf"a\.pkl\n  found:  .*({found})"):
        read_weights(tmp_path / "a.pkl")


def dtype(code: bytes, copy: bytes = b"\x88") -> bytes:
    """A program that leaves ``numpy.dtype(code, False, copy)`` on the stack."""
    return b"cnumpy\ndtype\n(U" + bytes([len(code)]) + code + b"\x89" + copy + b"tR"


def run(program: bytes):
    return ArrayUnpickler(io.BytesIO(b"\x80\x02" + program + b"."), encoding="latin1").load()


EMPTY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
EIGHT = b"U\x0812345678"
FLOAT = dtype(b"f4") + b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
PAIR = EMPTY + b"(K\x01(K\x02t" + FLOAT + b"\x89" + EIGHT + b"tb"


def test_the_programs_of_these_tests():
    values = np.frombuffer(b"12345678", "<f4")
    np.testing.assert_array_equal(run(PAIR), values)
    assert run(b"cnumpy.core.multiarray\nscalar\n" + FLOAT + b"U\x041234\x86R") == values[0]


@pytest.mark.parametrize(
    ("program", "found"),
    [
        # Eight bytes taken for the address of an object, and any memory taken for numbers.
        (b"cnumpy\nndarray\n((K\x01t" + dtype(b"O") + EIGHT + b"tR", "numbers of type O"),
        (b"cnumpy\nndarray\n((K\x01t" + FLOAT + EIGHT + b"tR", "not callable|NoneType"),
        (b"cnumpy\nndarray\n)\x81", "damaged"),  # NEWOBJ
        (EMPTY.replace(b"K\x00\x85", b"M\x00\x10\x85"), "an array that is not empty"),  # memory as it was
        (EMPTY + b"(K\x01(K\x01t" + dtype(b"O8") + b"\x89" + EIGHT + b"tb", "numbers of type O8"),
        (EMPTY + b"(K\x01(K\x02tK\x01\x89" + EIGHT + b"tb", "damaged.*__setstate__"),
        (EMPTY + b"(K\x01(J\xff\xff\xff\xffJ\xfe\xff\xff\xfft" + FLOAT + b"\x89" + EIGHT + b"tb", "without a shape"),
        (PAIR + b"(K\x01(K\x02t" + FLOAT + b"\x89" + EIGHT + b"tb", "a second state"),
        # Types: with fields, of sub-arrays, of unnamed bytes, of objects that have a dtype.
        *((dtype(code), "numbers of type") for code in (b"f4,O", b"3f4", b"V8", b"M8[us]", b"object", b"f4:")),
        (b"cnumpy\ndtype\n" + PAIR + b"\x85R", "numbers of type ndarray"),
        # State of a type: fields, names, a base, another size, a flag (0x01: holds objects).
        (dtype(b"f4") + b"(K\x03U\x01<N)}J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb", "a state for the type"),
        (
            dtype(b"f4") + b"(K\x03U\x01<" + FLOAT + b"NNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
            "a state for the type",
        ),
        (dtype(b"S8") + b"(K\x03U\x01|NNNM\x00\x10K\x01K\x00tb", "a state for the type"),
        (dtype(b"f4") + b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x01tb", "a state for the type"),
        (dtype(b"f4") + b"(K\x03U\x01eNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb", "a state for the type"),
        (dtype(b"f4") + b"(K\x04U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb", "a state for the type"),
        # Numbers and buffers over anything but bytes: they would outlive an array's memory.
        (b"cnumpy.core.multiarray\nscalar\n" + FLOAT + PAIR + b"\x86R", "bytes of a ndarray"),
        (b"cnumpy.core.numeric\n_frombuffer\n(" + PAIR + FLOAT + b"(K\x02tU\x01CtR", "bytes of a ndarray"),
        (b"cnumpy.core.numeric\n_frombuffer\n(" + EIGHT + b"U\x02f4(K\x02tU\x01CtR", "numbers of type str"),
        (b"cnumpy.core.multiarray\nscalar\nU\x02f4U\x041234\x86R", "numbers of type str"),
        # Lengths, which would reserve memory, and encodings, which are looked up by importing.
        (b"c__builtin__\nbytes\nJ\x00\x00\x01\x00\x85R", "bytes of a int"),
        (b"c__builtin__\nbytearray\nJ\x00\x00\x01\x00\x85R", "bytes of a int"),
        (b"cbuiltins\nbytes\nU\x01aU\x05utf-7\x86R", "bytes of a str"),
        # Other ways to make objects, and lists from outside.
        *((b"c__builtin__\nset\n" + rest, "damaged") for rest in (b")\x81", b")}\x92")),  # NEWOBJ, NEWOBJ_EX
        *((code, "damaged") for code in (b"(c__builtin__\nset\no", b"(i__builtin__\nset\n")),  # OBJ, INST
        *((code, "damaged") for code in (b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\x00\x00\x00")),  # EXT
        *((code, "damaged") for code in (PAIR + b"\x98", b"\x97", b"Pname\n")),  # buffers, PERSID
    ],
)
def test_arguments_and_states_that_no_array_has(tmp_path, monkeypatch, program, found):
    monkeypatch.setitem(copyreg._extension_cache, 1, os.getpid)
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02" + program + b".")
    with pytest.raises(InputError, match=rf"a\.pkl\n  found:  .*({found})"):
        read_pickled(tmp_path / "a.pkl")


def test_numpy_keeps_its_own_types():
    program = dtype(b"f4", copy=b"\x89") + b"(K\x03U\x01>NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    assert run(program) == np.dtype(">f4") and np.dtype("f4").isnative


def test_attributes_of_containers_are_forgotten():
    made = run(b"ccollections\nOrderedDict\n)R}U\x04nameK\x01sb")
    assert made == OrderedDict() and vars(made) == {}


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_texts_in_arrays(protocol):
    for array in (np.array(["a", "été"]), np.array([b"ab", b"c"]), np.array([1 + 2j]), np.array(3.5)):
        read = ArrayUnpickler(io.BytesIO(pickle.dumps(array, protocol)), encoding="latin1").load()
        np.testing.assert_array_equal(read, array, strict=True)


def test_storages_are_all_that_lies_outside(tmp_path):
    class Pickler(pickle.Pickler):
        def persistent_id(self, value):  # torch would compare sources, and write what differs
            return ("module", OrderedDict, "file.py", "source") if isinstance(value, Skipped) else None

    torch.save({"a": torch.ones(2)}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    content, file = (tmp_path / "a.pth").read_bytes(), io.BytesIO()
    Pickler(file, 2).dump(Skipped())
    start = content.index(b"\x80\x02}q\x00X\x01\x00\x00\x00a")  # after magic number, version and system
    (tmp_path / "a.pth").write_bytes(content[:start] + file.getvalue())
    with pytest.raises(InputError, match="Only persistent_load of storage is allowed"):
        read_pickled(tmp_path / "a.pth")


@pytest.mark.parametrize("other", [b"J\xff\xff\xff\xffN", b"U\x012N", b"K\x02K\x01"])  # -1, "2", a view
def test_storages_have_a_length(tmp_path, other):
    torch.save({"a": torch.ones(2), "b": np.ones(2)}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "a.pth").read_bytes()
    length = b"K\x02N"  # numel, no view
    assert content.count(length) == 1
    (tmp_path / "a.pth").write_bytes(content.replace(length, other))
    with pytest.raises(InputError, match=r"a\.pth\n  found:  damaged"):
        read_pickled(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("_rebuild_tensor", (OrderedDict(), 0, (1,), (1,))),
        ("_rebuild_tensor_v2", (np.ones(2), 0, (1,), (1,), False, OrderedDict())),
        ("_rebuild_parameter", (OrderedDict(), False, OrderedDict())),
    ],
)
def test_tensors_are_made_of_storages(tmp_path, name, arguments):
    torch.save({"a": Call(getattr(torch._utils, name), *arguments)}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"a\.pth\n  found:  damaged"):
        read_pickled(tmp_path / "a.pth")


def test_hooks_are_left_out(tmp_path):
    storage, hooks = torch.arange(2.0)._typed_storage(), OrderedDict({0: complex})
    tensor = Call(torch._utils._rebuild_tensor_v2, storage, 0, (2,), (1,), True, hooks)
    content = {"tensor": tensor, "parameter": Call(torch._utils._rebuild_parameter, tensor, True, hooks)}
    torch.save({"state_dict": content, "curve": HistoryBuffer()}, tmp_path / "a.pth")
    read, _ = read_weights(tmp_path / "a.pth")
    for name in content:
        assert_close(read[name], torch.arange(2.0))
        assert not read[name]._backward_hooks and not read[name].requires_grad


def test_forms_that_torch_would_unpack_or_run(tmp_path):
    with tarfile.open(tmp_path / "tar.pth", "w") as tar:
        link = tarfile.TarInfo("storages")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "other")
        tar.addfile(link)
    with pytest.raises(InputError, match=r"saved in the legacy \.tar format"):
        read_pickled(tmp_path / "tar.pth")
    with zipfile.ZipFile(tmp_path / "script.pth", "w") as archive:
        for name in ("constants.pkl", "data.pkl", "version"):
            archive.writestr(f"script/{name}", "3\n")
    with pytest.raises(InputError, match="TorchScript archives"):
        read_pickled(tmp_path / "script.pth")


def mmengine_checkpoint():
    """As mmengine's runner writes it: curves, their bound methods, numpy numbers in the message hub."""
    curve = HistoryBuffer([1.0, 2.0], [1, 1])
    return {
        "meta": {"cfg": "model = dict()", "epoch": 12, "dataset_meta": {"CLASSES": ("a", "b")}},
        "state_dict": OrderedDict(conv=torch.arange(3.0)),
        "message_hub": {
            "log_scalars": {"train/loss": curve},
            "method": curve.mean,
            "runtime_info": {"best": np.float64(0.5), "array": np.arange(2)},
        },
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(2, dtype=torch.float16)}}, "kind": torch.float16},
    }


@pytest.mark.parametrize("zipped", [True, False])
def test_training_files_of_mmengine(tmp_path, zipped):
    path = tmp_path / "epoch_12.pth"
    torch.save(mmengine_checkpoint(), path, _use_new_zipfile_serialization=zipped)
    state, facts = read_weights(path)
    assert_close(state, {"conv": torch.arange(3.0)})
    assert facts == {"meta": mmengine_checkpoint()["meta"]}
    read = read_pickled(path)
    assert read["optimizer"]["kind"] == torch.float16
    hub = read["message_hub"]
    for skipped in (hub["log_scalars"]["train/loss"], hub["method"], *hub["runtime_info"].values()):
        assert isinstance(skipped, Skipped)


def test_nothing_is_left_behind_that_torch_would_read(tmp_path):
    torch.save(mmengine_checkpoint(), tmp_path / "a.pth")
    before = set(torch.serialization.get_safe_globals())
    read_pickled(tmp_path / "a.pth")
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "a.pth", weights_only=True)


def test_lists_of_lists_are_not_printed(tmp_path):
    twice = b"".join(b"(h%ch%clq%c0" % (i, i, i + 1) for i in range(60))  # each holds the one before it twice
    bomb = b"]q\x000" + twice + b"h\x3c"
    order = dtype(b"f4") + b"(K\x03" + bomb + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    for program in (
        bomb,
        b"}U\x01a" + bomb + b"s",
        bomb + b"}b",
        order,
        EMPTY + b"(K\x01" + bomb + FLOAT + b"\x89N" + b"tb",
    ):
        (tmp_path / "a.pkl").write_bytes(b"\x80\x02" + program + b".")
        with pytest.raises(InputError):
            read_weights(tmp_path / "a.pkl")


def test_lengths_beyond_the_file_reserve_nothing(tmp_path):
    tracemalloc.start()
    for code in (b"\x8e", b"\x96", b"\x8d", b"\x95"):  # BINBYTES8, BYTEARRAY8, BINUNICODE8, FRAME: of a TiB
        (tmp_path / "a.pkl").write_bytes(b"\x80\x05" + code + struct.pack("<Q", 2**40) + b".")
        with pytest.raises(InputError, match=r"damaged|truncated|exhausted"):
            read_weights(tmp_path / "a.pkl")
    (tmp_path / "a.pkl").write_bytes(
        b"\x80\x02Nr" + struct.pack("<I", 2**31) + b"."
    )  # LONG_BINPUT: a place in the memo
    with pytest.raises(InputError, match="NoneType"):
        read_weights(tmp_path / "a.pkl")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_the_hub_of_mmengine_does_not_open_the_door(tmp_path):
    trace = tmp_path / "made"
    content = mmengine_checkpoint() | {"more": Call(os.mkdir, str(trace))}
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"posix\.mkdir"):
        read_weights(tmp_path / "a.pth")
    assert not trace.exists()


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"<html>Not found</html>"])
def test_damaged_files(tmp_path, damage):
    path = dump(tmp_path / "a.pkl", {"model": ARRAYS})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"a\.pkl\n  found:  "):
        read_weights(path)
