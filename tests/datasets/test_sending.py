"""Loader processes in which shared memory is full, files are few, or that are killed."""

import os
import re
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from resdet.datasets import sending
from resdet.datasets.loading import collate
from resdet.datasets.sending import SMALL, InPipe, Sending, fault_of_loaders, raise_file_limit
from resdet.structures import Target

ROOT = Path(__file__).parents[2]


class Noise(Dataset):
    """Pictures with channels last in memory, and targets."""

    def __len__(self):
        return 4

    def __getitem__(self, key):
        generator = torch.Generator().manual_seed(key)
        image = torch.randint(256, (120, 200 + key, 3), generator=generator, dtype=torch.uint8).permute(2, 0, 1)
        assert image.nbytes > SMALL
        boxes = torch.rand(key, 4, generator=generator)
        return image, Target(boxes, torch.arange(key), torch.zeros(key, dtype=torch.bool), key, (120, 200 + key))


def batches(workers):
    return list(DataLoader(Noise(), batch_size=2, num_workers=workers, collate_fn=Sending(collate)))


def assert_same(found, wanted):
    assert len(found) == len(wanted) == 2
    for (images, targets), (known, truths) in zip(found, wanted, strict=True):
        for image, same in zip(images, known, strict=True):
            assert torch.equal(image, same) and image.stride() == same.stride() and image.dtype == same.dtype
        for target, truth in zip(targets, truths, strict=True):
            assert type(target) is Target and target[3:] == truth[3:]
            assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(target[:3], truth[:3], strict=True))


def test_batches_arrive_as_they_were_made():
    found = batches(1)
    assert_same(found, batches(0))
    assert all(image.is_shared() for images, _ in found for image in images)
    assert not any(target.boxes.is_shared() for _, targets in found for target in targets)  # small ones need no file


@pytest.mark.parametrize("error", [RuntimeError("x: unable to allocate: No space left (28)"), OSError(24, "Too many")])
def test_without_room_in_shared_memory(monkeypatch, tmp_path, error):
    def full(self):
        raise error

    def tell(text, *arguments):
        with open(tmp_path / "told", "a") as file:
            file.write(text % arguments + "\n")

    wanted = batches(0)
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "share_memory_", full)
        patch.setattr(sending.logger, "warning", tell)
        found = batches(2)
    assert_same(found, wanted)
    assert not any(image.is_shared() for images, _ in found for image in images)
    (told,) = (tmp_path / "told").read_text().splitlines()  # of two processes the first one tells, once
    assert told.startswith("no room in shared memory (") and "--shm-size" in told and "loader.workers=0" in told


@pytest.mark.parametrize("shape", [(), (0, 4), (3,), (2, 3, 4)])
def test_tensors_in_a_pipe(shape):
    count = torch.Size(shape).numel()
    tensor = torch.arange(count, dtype=torch.int64).reshape(shape)
    for view in (tensor, tensor.permute(list(reversed(range(len(shape)))))):
        rebuild, parts = InPipe(view).__reduce__()
        assert torch.equal(rebuild(*parts), view) and rebuild(*parts).dtype == view.dtype
        assert rebuild(*parts).stride() == view.stride() or not count


SMALL_SHM = """
    import sys
    sys.path.insert(0, {tests!r})
    from test_sending import batches, assert_same
    assert_same(batches(2), batches(0))
    print("all there")
"""


def test_a_shared_memory_of_100_kilobytes(tmp_path):
    (tmp_path / "small.py").write_text(textwrap.dedent(SMALL_SHM).format(tests=str(Path(__file__).parent)))
    mount = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=100k tmpfs /dev/shm && echo mounted && "$@"', "sh"]
    try:
        probe = subprocess.run([*mount, "true"], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no unshare")
    if "mounted" not in probe.stdout:
        pytest.skip("no right to mount")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [*mount, sys.executable, tmp_path / "small.py"], capture_output=True, text=True, env=environment, timeout=100
    )
    if "Bus error" in ran.stderr:  # the process ends, and is told of by fault_of_loaders
        pytest.skip("this torch (2.6) finds out that there is no room only when it writes")
    assert ran.returncode == 0 and "all there" in ran.stdout, ran.stderr
    assert "no room in shared memory (No space left" in ran.stderr


DEADLY = """
    import os, signal, sys
    sys.path.insert(0, {tests!r})
    from test_sending import Noise
    from torch.utils.data import DataLoader
    from resdet.cli.running import run
    from resdet.datasets.loading import collate
    from resdet.datasets.sending import Sending

    class Deadly(Noise):
        def __getitem__(self, key):
            if key == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__getitem__(key)

    run(lambda: list(DataLoader(Deadly(), batch_size=1, num_workers=1, collate_fn=Sending(collate))))
"""


def test_a_killed_process_is_named(tmp_path):
    (tmp_path / "deadly.py").write_text(textwrap.dedent(DEADLY).format(tests=str(Path(__file__).parent)))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, tmp_path / "deadly.py"], capture_output=True, text=True, env=environment, timeout=60
    )
    assert ran.returncode == 1 and "Traceback" not in ran.stderr, ran.stderr
    assert re.match(r"error: (a loader process|loader process \d+)\n  found:  (killed by|ended suddenly)", ran.stderr)
    assert "memory: fewer loader.workers" in ran.stderr and ran.stderr.count("\n") == 3


def test_a_connection_that_breaks_in_between():
    def rebuild_storage_fd():
        raise ConnectionResetError(104, "Connection reset by peer")

    with pytest.raises(ConnectionResetError) as caught:
        rebuild_storage_fd()
    assert str(fault_of_loaders(caught.value)).startswith("a loader process\n  found:  ended suddenly")
    assert fault_of_loaders(ConnectionResetError(104, "Connection reset by peer")) is None


def test_other_ends_by_hand():
    bus = "DataLoader worker (pid 12) is killed by signal: Bus error. It is possible that dataloader's workers are out"
    told = str(fault_of_loaders(RuntimeError(bus)))
    assert told.startswith("loader process 12\n  found:  killed by the system (Bus error)") and "--shm-size" in told
    assert "--ipc=host" in told and "loader.workers=0" in told
    told = str(fault_of_loaders(RuntimeError("DataLoader worker (pid(s) 12, 13) exited unexpectedly")))
    assert told.startswith("loader process 12, 13\n  found:  ended suddenly")
    for error in (RuntimeError("received 0 items of ancillary data"), OSError(24, "Too many open files")):
        assert "ulimit -n" in str(fault_of_loaders(error))
    assert fault_of_loaders(RuntimeError("shapes differ")) is None and fault_of_loaders(OSError(28, "full")) is None


def test_the_limit_of_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = min(soft, 200)
    resource.setrlimit(resource.RLIMIT_NOFILE, (low, hard))
    try:
        raise_file_limit()
        raised, same = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert same == hard and (raised > low or hard <= low)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
