from __future__ import annotations

import pickle

import pytest

from resdet.datasets.file_names import FileNames


def test_file_names_round_trip():
    names = ["a.jpg", "", "ünïcode/ä b.png", "c"]
    files = FileNames(names)
    assert list(files) == names and len(files) == 4 and list(FileNames([])) == []
    assert list(pickle.loads(pickle.dumps(files))) == names
    with pytest.raises(IndexError):
        files[4]
    with pytest.raises(IndexError):
        files[-1]


def test_from_arrays():
    names = ["a.jpg", "", "ü"]
    arrays = FileNames(names).arrays
    assert arrays["text"].tobytes() == "a.jpgü".encode() and arrays["offsets"].tolist() == [0, 5, 5, 7]
    again = FileNames.of(**arrays)
    assert list(again) == [again[0], again[1], again[2]] == names
