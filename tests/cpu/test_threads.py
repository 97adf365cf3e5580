from __future__ import annotations

import logging
import os

import pytest
import torch

from resdet.cpu import threads
from resdet.engine.config import load_config
from resdet.engine.experiment import build_experiment, train_loader


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch):
    """Eight CPUs, all ours and known to torch; nobody has said anything."""
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for name in ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK", *threads.SIBLINGS):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    token = threads.LEFT.set(None)
    yield
    threads.LEFT.reset(token)
    torch.set_num_threads(before)


def machine(root, *, quota: str = "max 100000", group: str = "/a/b"):
    """Control groups of version 2; the bound is on the group above this process's own."""
    for place, text in {
        "proc/self/cgroup": f"0::{group}\n",
        "sys/fs/cgroup/a/cpu.max": quota + "\n",
        "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
    }.items():
        path = root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def ticks(root, busy: dict[int, int]):
    """``/proc/stat``: user time of each CPU in hundredths, and much idle and waiting time, which does not count."""
    rows = [f"cpu{number} {busy.get(number, 0)} 0 0 90000 500 0 0 0 0 0" for number in range(16)]
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc" / "stat").write_text("\n".join(["cpu 1 2 3 4", *rows, "intr 5"]) + "\n")


class Idle:
    def busy(self) -> float:
        return 0.0


class Busy(Idle):
    def __init__(self, cpus: float) -> None:
        self.cpus = cpus

    def busy(self) -> float:
        return self.cpus


def test_quota_of_both_versions(tmp_path):
    assert threads.quota(tmp_path) is None  # not Linux
    assert threads.quota(machine(tmp_path / "2", quota="250000 100000")) == 2.5
    assert threads.quota(machine(tmp_path / "none")) is None
    inside = tmp_path / "inside"  # a container that sees its own group as the root
    machine(inside, group="/")
    (inside / "sys/fs/cgroup/cpu.max").write_text("150000 100000\n")
    assert threads.quota(inside) == 1.5
    old, group = tmp_path / "old", tmp_path / "old/sys/fs/cgroup/cpu,cpuacct/docker"
    group.mkdir(parents=True)
    (old / "proc/self").mkdir(parents=True)
    (old / "proc/self/cgroup").write_text("3:memory:/docker\n2:cpu,cpuacct:/docker\n")
    for name, text in {"cfs_quota_us": "300000", "cfs_period_us": "100000"}.items():
        (group / f"cpu.{name}").write_text(text)
    assert threads.quota(old) == 3
    (group / "cpu.cfs_quota_us").write_text("-1")
    assert threads.quota(old) is None


def test_given(tmp_path, monkeypatch):
    assert threads.given(tmp_path) == (8, ())
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5, 6, 7}, raising=False)
    assert threads.given(tmp_path) == (4, ("an affinity of 4 CPUs",))
    root = machine(tmp_path, quota="600000 100000")
    assert threads.given(root).count == 4  # the quota is no bound then
    machine(tmp_path, quota="300000 100000")
    assert threads.given(root) == (3, ("an affinity of 4 CPUs", "a quota of 3 CPUs"))
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert threads.given(root).count == 0.5
    assert threads.cpus(root) == 1


def test_others_are_watched_on_our_own_cpus(tmp_path, monkeypatch):
    assert threads.Others(tmp_path / "none").busy() == 0  # not Linux
    clock = iter([10.0, 12.0, 12.0])  # at the start, before and after the look
    monkeypatch.setattr(threads.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(threads.time, "process_time", iter([5.0, 6.0]).__next__)
    monkeypatch.setattr(os, "sysconf", lambda _: 100)
    ticks(tmp_path, {0: 1000, 1: 50, 9: 7})
    others = threads.Others(tmp_path)
    ticks(tmp_path, {0: 1200, 1: 250, 9: 99999})  # CPU 9 is not ours
    assert others.busy() == (4 - 1) / 2  # two CPUs for two seconds, of which this process one


def test_choice(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="resdet")
    assert threads.choose(Idle(), tmp_path) == torch.get_num_threads() == 8
    assert not caplog.records  # torch's own
    assert threads.choose(Busy(2.7), tmp_path) == torch.get_num_threads() == 5
    (record,) = caplog.records
    assert record.getMessage().startswith("5 of 8 threads: other processes keep 2.7 CPUs busy (run.threads or OMP")
    torch.set_num_threads(8)
    assert threads.choose(Busy(8.0), tmp_path) == 2  # a quarter
    torch.set_num_threads(3)
    assert threads.choose(Idle(), tmp_path) == 3  # never above torch's own: it knows cores from hyperthreads
    torch.set_num_threads(8)
    assert threads.choose(Idle(), machine(tmp_path, quota="150000 100000")) == 2
    torch.set_num_threads(8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert threads.choose(Busy(8.0), tmp_path / "elsewhere") == 4  # the other is one of ours
    assert "2 processes of one job" in caplog.text
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    torch.set_num_threads(7)
    assert threads.choose(Busy(8.0), tmp_path) == torch.get_num_threads() == 7


def test_waiting_threads_sleep_where_the_machine_is_shared(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "")  # so that it is what it was afterwards

    def policy(others, root=tmp_path):
        os.environ.pop("OMP_WAIT_POLICY", None)
        threads.wait_passively(others, root)
        return os.environ.get("OMP_WAIT_POLICY")

    assert policy(Idle()) is None and policy(Busy(0.4)) is None
    assert policy(Busy(0.6)) == "passive"
    assert policy(Idle(), machine(tmp_path / "quota", quota="300000 100000")) == "passive"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert policy(Busy(8)) is None  # nobody waits
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    threads.wait_passively(Busy(8), tmp_path)
    assert os.environ["OMP_WAIT_POLICY"] == "active"  # the user's word


def test_loader_processes_are_counted_in(tmp_path):
    threads.leave_for(2)
    assert torch.get_num_threads() == 8  # no tool has chosen
    threads.choose(Busy(2.0), tmp_path)
    threads.leave_for(1)
    threads.leave_for(1)  # a second look changes nothing
    assert torch.get_num_threads() == 5
    threads.leave_for(4)
    assert torch.get_num_threads() == 5  # one CPU of 6 at most: 6 // 4
    threads.use(8)
    threads.leave_for(1)
    assert torch.get_num_threads() == 8  # the user's word
    threads.use(None)
    assert torch.get_num_threads() == 8


def test_of_a_config(det_config, tmp_path):
    config = load_config(det_config, ["run.threads=3", "loader.workers=1"])
    threads.choose(Idle(), tmp_path)
    train_loader(build_experiment(config, load_init=False))
    assert torch.get_num_threads() == 3
    threads.choose(Idle(), tmp_path)  # 3 are now torch's own
    torch.set_num_threads(8)
    train_loader(build_experiment(load_config(det_config, ["loader.workers=2"]), load_init=False))
    assert torch.get_num_threads() == 6  # two of eight read images
