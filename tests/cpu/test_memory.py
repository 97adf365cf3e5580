from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from resdet.cpu import memory

FAULTS = """
import resource, torch
from resdet.cpu.memory import keep_freed_memory
if {keep}:
    assert keep_freed_memory()
for _ in range(20):
    torch.ones(8 << 20)  # 32 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def faults(*, keep: bool) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS.format(keep=keep)], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's C library")
def test_memory_is_not_asked_for_again():
    # 20 tensors of 8,192 pages: without keeping, each is mapped and faulted in anew; kept, they share the first.
    pages = 20 * (32 << 20) // resource.getpagesize()
    saved = faults(keep=False) - faults(keep=True)
    assert saved > pages / 2


def test_elsewhere_it_does_nothing(monkeypatch):
    class NoGlibc:
        def __init__(self, name):
            pass

    monkeypatch.setattr(memory.ctypes, "CDLL", NoGlibc)
    assert memory.keep_freed_memory() is False


def test_an_old_library_is_left_as_it_is(monkeypatch):
    asked = []

    class Old:
        gnu_get_libc_version = None

        def __init__(self, name):
            pass

        def mallopt(self, switch, value):
            asked.append(switch)
            return 0

    monkeypatch.setattr(memory.ctypes, "CDLL", Old)
    assert memory.keep_freed_memory() is False
    assert asked == [memory.M_MMAP_THRESHOLD]


GIVEN_BACK = """
import torch
from pathlib import Path
from resdet.cpu.memory import give_back, keep_freed_memory
assert keep_freed_memory()
def held():
    return next(int(l.split()[1]) for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmRSS"))
torch.ones(64 << 20)  # 256 MiB
before = held()
give_back()
print(before - held())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's C library")
def test_kept_memory_is_given_back_when_asked():
    done = subprocess.run([sys.executable, "-c", GIVEN_BACK], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 200 * 1024  # KiB
