from __future__ import annotations

import pickle

import pytest
from torch._utils import ExceptionWrapper

from resdet.errors import InputError, listed, nearest

TEXT = "a.json\n  found:  3 boxes\n  needed: 4 boxes"


def test_three_parts():
    error = InputError("a.json", found="3 boxes", needed="4 boxes")
    assert str(error) == TEXT
    assert isinstance(error, ValueError)


def test_a_falsy_finding_is_shown():
    assert str(InputError("count", found=0, needed=1)) == "count\n  found:  0\n  needed: 1"


def test_crosses_processes():
    error = InputError("a.json", found="3 boxes", needed="4 boxes")
    assert str(pickle.loads(pickle.dumps(error))) == TEXT
    try:
        raise error
    except InputError:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")  # what a loader process sends home
    with pytest.raises(InputError) as caught:
        wrapped.reraise()
    assert str(caught.value) == TEXT  # without the worker's traceback


def test_nearest():
    known = ["resnet50", "resnet18", "vgg16"]
    assert nearest("resnet5O", known) == "did you mean 'resnet50' or 'resnet18'? (of 3 known)"
    assert nearest("zzz", known) == "one of: resnet18, resnet50, vgg16"
    assert nearest("zzz", (f"n{i:02}" for i in range(33))).endswith("n29, and 3 more")


def test_long_lists_are_cut():
    assert listed([]) == "nothing"
    assert listed(["a", "b"]) == "a, b"
    assert listed(list("abcdefg")) == "a, b, c, d, e, and 2 more"
