"""Memory is that of the process, from when the meter was made."""

import pytest
import torch

from resdet.benchmarks import footprint
from resdet.benchmarks.footprint import Memory, MemoryMeter, free_memory
from resdet.benchmarks.workers import Worker

needs_linux = pytest.mark.skipif(not footprint.CLEAR.exists() or torch.cuda.is_available(), reason="Linux without GPU")


class Allocating:
    """In a process of its own, whose heap has no room left by others."""

    def measure(self) -> list[Memory]:
        first = MemoryMeter()
        block = torch.ones(64 * 2**20 // 4)  # 64 MiB, mapped from the kernel and given back
        told = [first.read()]
        del block
        return [*told, first.read(), MemoryMeter().read()]


@needs_linux
def test_a_peak_outlives_what_caused_it_but_not_the_next_meter():
    with Worker(Allocating) as worker:
        held, after, next_one = worker.ask("measure")
    assert held.resting > 0
    for seen in (held, after):
        assert 60 / 1024 < seen.peak - seen.resting < 80 / 1024
    assert next_one.peak < after.peak - 48 / 1024


def test_without_a_system_that_tells_it_is_the_peak_of_the_process(monkeypatch, tmp_path):
    monkeypatch.setattr(footprint, "CLEAR", tmp_path / "missing")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    seen = MemoryMeter().read()
    assert seen.resting == 0 and 0.05 < seen.peak < 1024


def test_memory_that_is_free_is_bounded_by_machine_and_container(monkeypatch, tmp_path):
    machine, most, used, told = (tmp_path / name for name in ("meminfo", "max", "current", "stat"))
    machine.write_text("MemTotal:  9 kB\nMemAvailable:  524288 kB\n")  # half a GiB
    monkeypatch.setattr(footprint, "MACHINE", machine)
    monkeypatch.setattr(footprint, "CONTAINERS", ((most, used, told),))
    assert free_memory() == 0.5  # no container
    most.write_text("max\n")
    used.write_text(f"{2**30}\n")
    assert free_memory() == 0.5
    most.write_text(f"{2**30 + 2**27}\n")
    assert free_memory() == 0.125
    told.write_text(f"anon 1\nactive_file {2**26}\ninactive_file {2**26}\n")  # the system's copies of files give way
    assert free_memory() == 0.25
    most.write_text("1\n")
    assert free_memory() == 0
