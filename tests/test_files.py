"""Files: whole or not at all, and what is kept between runs."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from resdet.files import cache_folder, keep_arrays, kept_arrays, kept_path, replacing, sha256


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "below" / "a.bin"
    with replacing(path) as file:
        file.write(b"first")
    with pytest.raises(ZeroDivisionError), replacing(path) as file:
        file.write(b"half of the sec")
        raise ZeroDivisionError
    assert path.read_bytes() == b"first" and [p.name for p in path.parent.iterdir()] == ["a.bin"]
    assert sha256(path) == hashlib.sha256(b"first").hexdigest()


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
