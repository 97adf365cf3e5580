"""How much memory this process has held at most.

On a CPU its resident set, which holds everything: interpreter and libraries (0.7 GiB), weights, maps, and what the
allocator keeps. On a GPU what torch has allocated there.
"""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from typing import NamedTuple

import torch

STATUS, CLEAR, MACHINE = Path("/proc/self/status"), Path("/proc/self/clear_refs"), Path("/proc/meminfo")
GROUPS = Path("/sys/fs/cgroup")
CONTAINERS = (
    (GROUPS / "memory.max", GROUPS / "memory.current", GROUPS / "memory.stat"),
    *[tuple(GROUPS / "memory" / f"memory.{name}" for name in ("limit_in_bytes", "usage_in_bytes", "stat"))],
)
"""Where version 2 and version 1 of Linux's groups tell bound, use, and what is used for."""


class Memory(NamedTuple):
    """In GiB."""

    resting: float
    """When the count began; 0 where the system does not tell."""
    peak: float
    """Since then; where the system cannot forget a peak (other than Linux), since the process began."""


class MemoryMeter:
    """Counts from when it is made."""

    def __init__(self) -> None:
        self._resting = 0.0
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self._resting = torch.cuda.memory_allocated() / 2**30
        elif CLEAR.exists():
            CLEAR.write_text("5")  # "reset the peak resident set size"
            self._resting = _status("VmRSS")

    def read(self) -> Memory:
        """The peak up to now."""
        if torch.cuda.is_available():
            return Memory(self._resting, torch.cuda.max_memory_allocated() / 2**30)
        if self._resting:
            return Memory(self._resting, _status("VmHWM"))
        unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB elsewhere
        return Memory(0.0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)


def _status(field: str) -> float:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 2**20


def free_memory() -> float:
    """GiB that this process may still take: of the machine, and of its container where that is bounded."""
    free = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    if MACHINE.exists():
        fields = dict(line.split(":") for line in MACHINE.read_text().splitlines())
        free.append(int(fields["MemAvailable"].split()[0]) * 1024)
    for bound, used, told in CONTAINERS:
        if bound.exists() and used.exists() and (most := bound.read_text().strip()).isdigit():  # else "max"
            fields = dict(line.split() for line in told.read_text().splitlines()) if told.exists() else {}
            files = sum(
                int(fields.get(name, 0)) for name in ("active_file", "inactive_file")
            )  # given up when asked for
            free.append(int(most) - int(used.read_text()) + files)
    return max(0, min(free)) / 2**30
