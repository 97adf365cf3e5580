"""Files: whole or not at all, and what is kept between runs."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from resdet.backbones.published import publish
from resdet.backbones.weights import read_weights
from resdet.engine.checkpoints import read_checkpoint
from resdet.errors import InputError
from resdet.files import (
    cache_folder,
    damaged_part,
    held,
    keep_arrays,
    kept_arrays,
    kept_path,
    remove_strays,
    replacing,
    sha256,
)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "below" / "a.bin"
    with replacing(path) as file:
        file.write(b"first")
    with pytest.raises(ZeroDivisionError), replacing(path) as file:
        file.write(b"half of the sec")
        raise ZeroDivisionError
    assert path.read_bytes() == b"first" and [p.name for p in path.parent.iterdir()] == ["a.bin"]
    assert sha256(path) == hashlib.sha256(b"first").hexdigest()


def test_strays_of_killed_processes_go(tmp_path):
    code = "import os, sys; from resdet.files import replacing\n"
    code += "with replacing(sys.argv[1]) as file:\n os.kill(os.getpid(), 9)"
    for name in ("last.pth", "best.pth"):
        subprocess.run([sys.executable, "-c", code, tmp_path / name], check=False)
    strays = list(tmp_path.iterdir())
    assert len(strays) == 2 and all(path.name.startswith((".last.pth.", ".best.pth.")) for path in strays)
    kept = [f".last.pth.{os.getpid()}", ".last.pth.x", ".notes.2024", "last.pth.99999999", f".a.b.{10**30}", ".a.pth.1"]
    for name in kept:
        (tmp_path / name).touch()
    remove_strays(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("RESDET_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("RESDET_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "resdet"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_folder() == Path("/home/somebody/.cache/resdet")


def test_places_of_sources_differ(tmp_path):
    one, other = (kept_path(tmp_path / folder / "set.zip", "train") for folder in "ab")
    assert one != other and one == kept_path(f"{tmp_path}/a/../a/set.zip", "train")
    assert one.name.startswith("set.zip.") and one.name.endswith(".train.npz")


def test_kept_arrays_need_the_same_fingerprint(tmp_path):
    path = tmp_path / "x.npz"
    assert kept_arrays(path, "f") is None
    keep_arrays(path, "f", {"a": np.arange(3)})
    assert kept_arrays(path, "f")["a"].tolist() == [0, 1, 2]
    assert kept_arrays(path, "g") is None
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(bytes(content))
    assert kept_arrays(path, "f") is None  # a flipped bit
    path.write_bytes(b"PK")
    assert kept_arrays(path, "f") is None


def test_where_nothing_can_be_written_nothing_is_kept(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with caplog.at_level("INFO"):
        keep_arrays(tmp_path / "file" / "x.npz", "f", {"a": np.arange(3)})
    assert "is not kept" in caplog.text


def test_a_link_stays_and_a_device_is_written_into(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with replacing(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"
    with replacing(os.devnull) as file:
        file.write(b"gone")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


@pytest.mark.parametrize("where", [0.3, 0.5, 0.7])
def test_a_flipped_bit_in_a_checkpoint(tmp_path, where):
    path = tmp_path / "last.pth"
    torch.save({"meta": {"classes": ["a"]}, "state_dict": {"w": torch.arange(10_000.0)}}, path)
    assert damaged_part(path) is None
    content = bytearray(path.read_bytes())
    content[int(len(content) * where)] ^= 4
    path.write_bytes(content)
    torch.load(path, weights_only=True)  # without a word
    assert damaged_part(path)
    for read in (read_checkpoint, read_weights):
        with pytest.raises(InputError, match=r"checksum of .*\n.*best\.pth"):
            read(path)


def test_a_flipped_bit_in_a_published_file(tmp_path):
    path = publish(tmp_path / "net.safetensors", {"w": torch.arange(10_000.0), "n": torch.tensor(3)}, {"backbone": "x"})
    assert torch.equal(read_weights(path)[0]["w"], torch.arange(10_000.0))
    content = bytearray(path.read_bytes())
    content[-20_000] ^= 4
    path.write_bytes(content)
    with pytest.raises(InputError, match="not those that were published"):
        read_weights(path)


def test_one_process_holds_a_folder(tmp_path):
    code = f"from resdet.files import held\nwith held({str(tmp_path)!r}): print('in', flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as other:
        assert other.stdout.readline() == "in\n"
        with pytest.raises(BlockingIOError), held(tmp_path):
            pass
        other.kill()
    with held(tmp_path):  # a dead process holds nothing
        pass
