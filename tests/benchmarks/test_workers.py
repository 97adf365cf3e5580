"""A worker answers from a process of its own, and tells errors. No time is asserted."""

import os

import pytest
import torch

from resdet.benchmarks.workers import Worker
from resdet.errors import InputError


class Served:
    """What the tests start."""

    def __init__(self, start: int) -> None:
        if start < 0:
            raise InputError("start", found=start, needed="0 or more")
        self.count = start

    def add(self, number: int) -> tuple[int, int]:
        self.count += number
        return self.count, os.getpid()

    def threads(self) -> int:
        return torch.get_num_threads()

    def fail(self) -> None:
        raise KeyError("lost")

    def end(self) -> None:
        os._exit(3)


def test_a_worker_keeps_its_state_in_its_own_process():
    with Worker(Served, 5) as first, Worker(Served, 7) as second:
        assert first.built() is first and second.built() is second
        told = [first.ask("add", 1), second.ask("add", 2), first.ask("add", 10)]
        assert [count for count, _ in told] == [6, 9, 16]
        assert told[0][1] == told[2][1]
        assert len({os.getpid(), told[0][1], told[1][1]}) == 3
        with pytest.raises(KeyError, match="lost"):
            first.ask("fail")
        assert first.ask("add", 0)[0] == 16  # an error does not end it
        asked = [worker.send("add", 0) for worker in (first, second)]
        assert [answer.result()[0] for answer in asked] == [16, 9]
    for _, process in told:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_mistakes_and_ends_are_told():
    with Worker(Served, -1) as refused, Worker(Served, 0) as ended:
        with pytest.raises(InputError, match=r"start\n  found:  -1\n  needed: 0 or more"):
            refused.built()
        ended.built()
        with pytest.raises(RuntimeError, match="terminated"):
            ended.ask("end")


def test_threads_are_those_of_the_process():
    with Worker(Served, 0, threads=1) as worker:
        assert worker.ask("threads") == 1
