"""How many threads: the CPUs that this process is really given, less those that other processes keep busy.

torch takes every core of the machine, whatever a container's quota or the neighbours leave of it, and a team of threads
is as slow as the one that waits for a CPU: beside busy processes two threads on two CPUs are slower than one. A process
that other code shares should decide for itself, so it is the tools that call this, and never an import.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

logger = logging.getLogger(__name__)

ROOT = Path("/")
MOMENT = 0.1
"""Seconds over which others are watched at least; the kernel counts in hundredths."""
SHARED = 0.5
"""CPUs that others keep busy on a machine that is shared."""
FOR_LOADERS = 4
"""Loader processes are given at most one CPU of so many: decoding is light beside a step on a CPU."""
SIBLINGS = ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE")
"""How torchrun and mpirun tell the number of processes on this machine."""
LEFT: ContextVar[int | None] = ContextVar("LEFT", default=None)
"""CPUs that a tool has found free at its start; None where nobody looked, or where the user has decided."""


class Given(NamedTuple):
    """CPUs that a process may use."""

    count: float
    reasons: tuple[str, ...] = ()
    """Why they are not all of the machine, in words."""


def given(root: Path = ROOT) -> Given:
    """CPUs by affinity, by the quota of a container, and by Slurm's or a launcher's division."""
    machine = os.cpu_count() or 1
    count: float = len(_affinity())
    reasons = [f"an affinity of {count} CPUs"] if count < machine else []
    bounds = {"a quota of {:g} CPUs": quota(root), "Slurm's {:g} CPUs a task": _number("SLURM_CPUS_PER_TASK")}
    for words, bound in bounds.items():
        if bound is not None and bound < count:
            count, reasons = bound, [*reasons, words.format(bound)]
    if (siblings := _siblings()) > 1:
        count, reasons = count / siblings, [*reasons, f"{siblings} processes of one job"]
    return Given(count, tuple(reasons))


def cpus(root: Path = ROOT) -> int:
    """How many processes or threads may run at once: :func:`given` as a whole number, 1 or more."""
    return max(1, round(given(root).count))


def quota(root: Path = ROOT) -> float | None:
    """CPUs that the control groups of this process allow, the least of all above it; None without a bound.

    Args:
        root: of the file system; tests have their own.
    """
    bounds = []
    with suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, kinds, place = line.split(":", 2)
            if not kinds:  # version 2
                folders = ["sys/fs/cgroup", "sys/fs/cgroup/unified"]
            elif "cpu" in kinds.split(","):
                folders = [f"sys/fs/cgroup/{kinds}", "sys/fs/cgroup/cpu"]
            else:
                continue
            inside = Path(place.lstrip("/"))  # of the machine's tree; a container may see its own part alone
            bounds += [b for f in folders for part in (inside, *inside.parents) for b in _bounds(root / f / part)]
    return min(bounds, default=None)


def _bounds(group: Path) -> Iterator[float]:
    """The quota of a group, where it has one: in the file of version 2 or in those of version 1."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        with suppress(OSError, ValueError):
            runs, period = " ".join((group / name).read_text() for name in names).split()
            if float(runs) > 0:  # "max" is no number, version 1 says -1
                yield float(runs) / float(period)


class Others:
    """What other processes do on the CPUs of this one, from now on. Nothing is known but on Linux.

    Args:
        root: of the file system.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self._root, self._began = root, time.monotonic()
        self._all, self._own = _busy_seconds(root), time.process_time()

    def busy(self) -> float:
        """CPUs that they have kept busy since then, on average."""
        if self._all is None:
            return 0.0
        time.sleep(max(0.0, self._began + MOMENT - time.monotonic()))
        now = _busy_seconds(self._root)
        if now is None:
            return 0.0
        own, spent = time.process_time() - self._own, time.monotonic() - self._began
        return max(0.0, now - self._all - own) / spent


def _busy_seconds(root: Path) -> float | None:
    """Seconds that the CPUs of this process have worked since the machine began, the hypervisor's share included."""
    with suppress(OSError, ValueError, IndexError, AttributeError):
        own = {f"cpu{number}" for number in _affinity()}
        rows = [line.split() for line in (root / "proc/stat").read_text().splitlines()]
        ticks = [sum(map(int, row[1:9])) - int(row[4]) - int(row[5]) for row in rows if row and row[0] in own]
        return sum(ticks) / os.sysconf("SC_CLK_TCK") if ticks else None
    return None


def wait_passively(others: Others, root: Path = ROOT) -> None:
    """Let threads that wait sleep, where others need their CPUs or a quota counts them; torch asks when it is imported.

    With a machine of one's own they spin for some milliseconds, which saves waking them.
    """
    if os.environ.get("OMP_NUM_THREADS") != "1" and (given(root).reasons or others.busy() >= SHARED):
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def choose(others: Others, root: Path = ROOT) -> int:
    """Set torch's threads to the CPUs that are left, never above its own choice, and say so where they are fewer.

    ``OMP_NUM_THREADS`` is obeyed. At least a quarter of the CPUs is taken, however busy the machine is: the kernel
    gives a process its share.

    Args:
        others: watched since the start.
        root: of the file system.

    Returns:
        The number of threads.
    """
    import torch

    own = torch.get_num_threads()
    if os.environ.get("OMP_NUM_THREADS"):
        return own
    allowed = given(root)
    busy = others.busy() if _siblings() == 1 else 0.0  # the others of a job start at the same moment
    left = max(1, round(allowed.count / 4), round(allowed.count - busy))
    LEFT.set(left)
    if left < own:
        why = [*allowed.reasons, *([f"other processes keep {busy:.1f} CPUs busy"] if busy >= SHARED else [])]
        logger.info("%d of %d threads: %s (run.threads or OMP_NUM_THREADS: as you say)", left, own, ", ".join(why))
        torch.set_num_threads(left)
    return min(left, own)


def use(threads: int | None) -> None:
    """Take the user's word; None leaves all as it is."""
    import torch

    if threads is not None:
        LEFT.set(None)
        torch.set_num_threads(threads)


def leave_for(loaders: int) -> None:
    """Leave CPUs to loader processes, one in :data:`FOR_LOADERS` at most, where a tool has chosen the threads."""
    import torch

    if (left := LEFT.get()) is not None:
        torch.set_num_threads(min(torch.get_num_threads(), left - min(loaders, left // FOR_LOADERS)))


def _affinity() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _siblings() -> int:
    """Processes of this one's job on the machine, itself included."""
    return int(max((number for name in SIBLINGS if (number := _number(name))), default=1))


def _number(variable: str) -> float | None:
    """The positive number that a variable of the environment holds, if it does."""
    text = os.environ.get(variable, "")
    return float(text) if text.isdecimal() and int(text) > 0 else None
