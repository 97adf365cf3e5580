"""Kills runs at random times until they are finished: ``python tests/kills.py --one 100 --two 20``.

After each kill ``last.pth`` has to be whole; a finished run has to have the weights of one that was never stopped, bit
for bit, and its folder no stray. Of a run of two processes one or both are killed; the other has to end by itself.
Prints what it did; ends with 1 where anything else was seen.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from conftest import DETECTION, write_rectangles

from resdet.engine.checkpoints import read_checkpoint
from resdet.files import damaged_part

ROOT = Path(__file__).parents[1]
CHANGES = (
    ("length=6, milestones=(4,), warmup_steps=2, validate_every=6", "length=120, warmup_steps=2, validate_every=20"),
    ("run = dict(log_every=1)", "run = dict(log_every=50, checkpoint_every=3)"),
    ("optimizer = dict(", "optimizer = dict(weight_decay=0.001, "),
)
"""Longer than the tests' own run, with a checkpoint at every third step."""
PATIENCE = 60.0
"""Seconds after which a process must have ended whose other one was killed."""


def start(config: Path, work_dir: Path, processes: int) -> list[subprocess.Popen]:
    """The processes of a run that goes on where there is something to go on with."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [
        sys.executable,
        str(ROOT / "tools" / "train_det.py"),
        str(config),
        "--work-dir",
        str(work_dir),
        "--resume",
    ]
    command += ["--launcher", "mpi"] if processes > 1 else []
    started = []
    for rank in map(str, range(processes)):
        own = {"OMPI_COMM_WORLD_RANK": rank, "OMPI_COMM_WORLD_SIZE": str(processes), "OMPI_COMM_WORLD_LOCAL_RANK": rank}
        own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        with open(work_dir.parent / f"{work_dir.name}.{rank}.log", "ab") as log:
            started.append(subprocess.Popen(command, env=os.environ | own, stdout=log, stderr=subprocess.STDOUT))
    return started


def finish(run: list[subprocess.Popen], limit: float) -> bool:
    """Whether all processes ended well; those that are left at the limit are killed."""
    end = time.monotonic() + limit
    for process in run:
        try:
            process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            for other in run:
                other.kill()
                other.wait()
            return False
    return all(process.returncode == 0 for process in run)


def kill(run: list[subprocess.Popen], draw: random.Random, faults: list[str]) -> None:
    """Kill one or all of a run's processes, and see that the others end."""
    victims = [draw.choice(run)] if draw.random() < 0.5 else run
    for process in victims:
        process.send_signal(signal.SIGKILL)
    began = time.monotonic()
    finish(run, PATIENCE)
    if time.monotonic() - began >= PATIENCE:
        faults.append(f"the others waited for {PATIENCE:.0f} s")


def look(work_dir: Path, faults: list[str]) -> int:
    """The steps of ``last.pth``, which has to be whole."""
    last = work_dir / "last.pth"
    if not last.exists():
        return 0
    if damaged_part(last) is not None:
        faults.append(f"{last} is torn")
    return read_checkpoint(last)["meta"]["step"]


def same(a: Path, b: Path) -> bool:
    """Whether two checkpoints have the same weights and the same state of the optimizer's momentum, bit for bit."""
    one, other = read_checkpoint(a), read_checkpoint(b)
    states = [{k: v["momentum_buffer"] for k, v in each["optimizer"]["state"].items()} for each in (one, other)]
    pairs = [(one["state_dict"], other["state_dict"]), tuple(states)]
    return all(x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x) for x, y in pairs)


def kills(root: Path, config: Path, processes: int, count: int, seed: int) -> list[str]:
    """Kill so many times, each run until it is finished; what went wrong."""
    faults: list[str] = []
    draw, whole = random.Random(seed), root / f"whole{processes}"
    began = time.monotonic()
    if not finish(start(config, whole, processes), 600):
        return [f"the run that nobody stops has failed: see {whole}.0.log"]
    lasts = time.monotonic() - began
    done = number = 0
    while done < count:
        number, work_dir, steps = number + 1, root / f"run{processes}_{number}", []
        while True:
            run = start(config, work_dir, processes)
            if done >= count:
                ended = finish(run, 600)
                break
            if ended := finish_before(run, draw.uniform(0.2 * lasts, lasts)):
                break
            kill(run, draw, faults)
            done += 1
            steps.append(look(work_dir, faults))
        strays = [path.name for path in work_dir.glob(".*")]
        right = ended and same(whole / "last.pth", work_dir / "last.pth")
        print(
            f"{processes} process(es), run {number}: killed after steps {steps}, {'right' if right else 'WRONG'}",
            flush=True,
        )
        faults += [] if right else [f"{work_dir} has other weights, or did not end"]
        faults += [f"{work_dir}: strays {strays}"] if strays else []
    print(f"{processes} process(es): {done} kills, {number} runs, {len(faults)} faults")
    return faults


def finish_before(run: list[subprocess.Popen], moment: float) -> bool:
    """Whether all processes end well within so many seconds; nothing is done to them."""
    end = time.monotonic() + moment
    while time.monotonic() < end:
        if all(process.poll() is not None for process in run):
            return all(process.returncode == 0 for process in run)
        time.sleep(0.01)
    return False


def main() -> None:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", type=int, default=100, help="kills of runs of one process (default: 100)")
    parser.add_argument("--two", type=int, default=20, help="kills of runs of two processes (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the times (default: 0)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        text = DETECTION.format(data=write_rectangles(root / "tiny"))
        for old, new in CHANGES:
            assert old in text, old
            text = text.replace(old, new)
        config = root / "config.py"
        config.write_text(text)
        faults = []
        for processes, count in ((1, args.one), (2, args.two)):
            faults += kills(root, config, processes, count, args.seed) if count else []
        for fault in faults:
            print(fault)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
