"""Several processes: units of this file in two processes of one script, then whole runs against runs of one process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from resdet.backbones.published import publish
from resdet.backbones.registry import BACKBONES
from resdet.engine import distributed
from resdet.engine.checkpoints import read_checkpoint
from resdet.engine.config import load_config
from resdet.engine.evaluate import evaluate
from resdet.engine.experiment import load_experiment
from resdet.errors import InputError

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(arguments: list, *, processes: int, cwd: Path, **environment: str) -> subprocess.Popen:
    """A script in one process, or under torchrun, on the CPU."""
    torchrun = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={free_port()}"]
    command = [sys.executable, *(torchrun if processes > 1 else []), *map(str, arguments)]
    variables = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment}
    return subprocess.Popen(
        command, cwd=cwd, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return output


def run_two(arguments: list, cwd: Path, variables: tuple[str, str, str]) -> list[str]:
    """Outputs of the two processes of a script, started as a launcher with these variables would."""
    port = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [dict(zip(variables, (rank, "2", rank), strict=True)) for rank in "01"]
    return [finish(process) for process in [start(arguments, processes=1, cwd=cwd, **port, **r) for r in ranks]]


def test_alone():
    distributed.start("none")
    assert (distributed.world_size(), distributed.rank()) == (1, 0)
    torch.testing.assert_close(distributed.gather(torch.eye(2)), torch.eye(2))
    assert distributed.everywhere(True) and not distributed.everywhere(False)
    torch.testing.assert_close(distributed.mean(torch.tensor([1.0, 2.0])), torch.tensor([1.0, 2.0]))
    distributed.wait()


@pytest.mark.parametrize(
    ("launcher", "variable", "command"),
    [
        ("pytorch", "LOCAL_RANK", "torchrun --nproc_per_node=N"),
        ("slurm", "SLURM_PROCID", "srun --ntasks=N"),
        ("mpi", "OMPI_COMM_WORLD_RANK", "mpirun -np N"),
    ],
)
def test_a_launcher_that_did_not_launch(monkeypatch, launcher, variable, command):
    for name in distributed.VARIABLES[launcher]:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError) as caught:
        distributed.start(launcher)
    assert f"--launcher {launcher}" in str(caught.value)
    assert variable in str(caught.value)
    assert command in str(caught.value)


UNITS = """
    import sys, types, torch
    from resdet.engine import distributed
    from resdet.engine.hooks import FiniteLoss
    from resdet.engine.metrics import ClassificationMetric
    from resdet.engine.runner import EvaluationLoop
    from resdet.errors import InputError
    from resdet.structures import Target

    distributed.start("mpi")
    rank = distributed.rank()
    assert distributed.world_size() == 2 and torch.distributed.get_backend() == "gloo"

    rows = distributed.gather(torch.tensor([[1.0, 2.0], [3.0, 4.0]] if rank == 0 else [[5.0, 6.0]]))
    assert rows is None if rank else rows.tolist() == [[1, 2], [3, 4], [5, 6]], rows
    nothing_there = distributed.gather(torch.ones(1 - rank, 2, 2, dtype=torch.int64).transpose(1, 2))
    assert nothing_there is None if rank else nothing_there.tolist() == [[[1, 1], [1, 1]]]
    assert distributed.everywhere(True)
    assert not distributed.everywhere(rank == 0) and not distributed.everywhere(rank == 1)
    assert distributed.mean(torch.tensor([1.0 + rank, 4.0])).tolist() == [1.5, 4.0]
    value = torch.tensor([5.0 + rank])
    distributed.copy_from_first(value)
    assert value.tolist() == [5.0]

    # Three images of class 0 here and one there; two and one are right: 3 of 4.
    metric = ClassificationMetric(("a", "b"))
    wrong, right = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])
    logits = torch.stack([right, right, wrong] if rank == 0 else [right])
    metric.process(None, [(logits, torch.zeros(len(logits), dtype=torch.int64))])
    assert metric.evaluate(4)["top1"] == 0.75

    # A loss that is bad in one process stops both at that step.
    target = Target(torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(0).bool(), 40 + rank, (1, 1))
    loss = torch.tensor(1.0 if rank == 0 else float("nan"))
    try:
        FiniteLoss(at_once=False).after_train_iter(
            types.SimpleNamespace(iter=2), 2, ([None], [target]), {"loss": loss, "loss_x": loss}
        )
    except InputError as error:
        assert f"step 3, images [{40 + rank}]" in str(error), error
        assert ("another process" in str(error)) == (rank == 0), error
    else:
        raise AssertionError("not stopped")
    # What is tested is what rank 0 saves: BN statistics that each process has of its own images are replaced.
    net = torch.nn.BatchNorm1d(1)
    net.running_mean.fill_(7.0 + rank)
    net.val_step = lambda batch: []
    log = types.SimpleNamespace(info=print)
    runner = types.SimpleNamespace(model=net, amp="off", call_hook=lambda name, **_: None, logger=log)
    evaluator = types.SimpleNamespace(process=lambda **_: None, evaluate=lambda size: {})
    EvaluationLoop(runner, torch.utils.data.DataLoader([0.0]), evaluator).run()
    assert net.running_mean.item() == 7.0
    print("units are right")

    from resdet.cli import evaluate

    evaluate(sys.argv[1:])  # as tools/eval.py does; the processes are joined already
"""


def test_two_processes_count_each_image_once(det_config, trained, tmp_path):
    # Small things first (UNITS), then five images over two processes: the metric raises if one is lost or doubled.
    (tmp_path / "units.py").write_text(textwrap.dedent(UNITS))
    arguments = [det_config, trained / "last.pth", "--out", "two.json", "--save-detections", "rows.json"]
    outputs = run_two([tmp_path / "units.py", *arguments], tmp_path, distributed.VARIABLES["mpi"])
    assert ["units are right" in output for output in outputs] == [True, True]
    assert ["AP75" in output for output in outputs] == [True, False]  # one table
    experiment = load_experiment(load_config(det_config), trained / "last.pth")
    figures = evaluate(experiment)
    assert json.loads((tmp_path / "two.json").read_text())["figures"] == pytest.approx(figures, abs=1e-12)
    assert json.loads((tmp_path / "rows.json").read_text()) == experiment.metric.rows


# What a step draws depends on the process. To compare runs to the last digits, draws are replaced by fixed ones, and
# all images have one size and two objects, so that all batches have one shape however they are split.
STEADY = """
    import torch
    from resdet.detection.build import faster_rcnn_fpn

    original = torch.rand

    def rand(shape, device=None):
        generator = torch.Generator().manual_seed(0)
        return original(shape[1:], generator=generator).expand(shape).to(device)

    torch.rand = rand
"""


@pytest.fixture(scope="module")
def steady(tiny, det_config, tmp_path_factory):
    """A folder with a config whose losses do not depend on how a batch is split."""
    from PIL import Image

    root = tmp_path_factory.mktemp("steady")
    (root / "steady.py").write_text(textwrap.dedent(STEADY))
    (root / "images").mkdir()
    content = json.loads(tiny.train.read_text())
    for image in content["images"]:
        with Image.open(tiny.images / image["file_name"]) as picture:
            picture.resize((64, 64)).save(root / "images" / image["file_name"])
        image.update(height=64, width=64)
    content["annotations"] = [
        {"id": 2 * place + k + 1, "image_id": image["id"], "category_id": (2, 5, 9)[(place + k) % 3], "iscrowd": 0}
        | {"bbox": [6 + 28 * k, 10 + 3 * place, 18, 20], "area": 360}
        for place, image in enumerate(content["images"])
        for k in range(2)
    ]
    (root / "train.json").write_text(json.dumps(content))
    publish(root / "start.safetensors", BACKBONES.build("resnet18-half").state_dict(), {"backbone": "resnet18-half"})
    text = det_config.read_text()
    for old, new in (
        ("from resdet.detection.build import", "from steady import"),
        (str(tiny.train), "train.json"),
        (f'train.json", image_root="{tiny.images}"', 'train.json", image_root="images"'),
        # else statistics are those of a process's own images
        ("frozen_batchnorm=False", f'frozen_batchnorm=True, init="{root / "start.safetensors"}"'),
        ("train_proposals=(60, 30)", "train_proposals=(200, 40)"),  # fewer than survive: always 40 + 2, 16 are used
        ("batch_size=2, workers=0", "batch_size=4, workers=0"),
        ("clip_norm=10.0", "clip_norm=1.0"),
    ):
        assert old in text
        text = text.replace(old, new)
    (root / "steady_det.py").write_text(text)
    return root


def losses(work_dir: Path) -> list[float]:
    (file,) = work_dir.glob("*/vis_data/scalars.json")
    return losses_of(file)


def losses_of(file: Path) -> list[float]:
    return [row["loss"] for row in map(json.loads, file.read_text().splitlines()) if "loss" in row]


@pytest.fixture(scope="module")
def two_runs(steady):
    """Work dirs of one run in one process and of one in two, side by side."""
    tool = [ROOT / "tools" / "train_det.py", "steady_det.py", "--work-dir"]
    path = f"{steady}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    one = start([*tool, "one"], processes=1, cwd=steady, PYTHONPATH=path)
    two = start([*tool, "two", "--launcher", "pytorch"], processes=2, cwd=steady, PYTHONPATH=path)
    outputs = [finish(process) for process in (one, two)]
    assert ["2 process(es)" in output for output in outputs] == [False, True]
    return steady / "one", steady / "two"


def test_two_processes_have_the_losses_of_one(two_runs):
    one, two = map(losses, two_runs)
    assert len(one) == len(two) == 6
    assert two == pytest.approx(one, rel=2e-4)
    a, b = (read_checkpoint(folder / "last.pth") for folder in two_runs)
    torch.testing.assert_close(b["state_dict"], a["state_dict"], atol=2e-4, rtol=2e-3)
    assert a["meta"]["step"] == b["meta"]["step"] == 6
    assert len(list(two_runs[1].glob("*/vis_data"))) == 1  # one process writes


@pytest.mark.parametrize(("first", "then"), [(2, 1), pytest.param(1, 2, marks=pytest.mark.slow)])
def test_a_run_goes_on_in_another_number_of_processes(two_runs, first, then):
    steady, name = two_runs[0].parent, f"{first}_{then}"
    path = f"{steady}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    for n, length in ((first, 3), (then, 6)):
        launcher = ["--launcher", "pytorch"] if n > 1 else []
        options = [*launcher, "--cfg-options", f"schedule.length={length}", "schedule.validate_last=False"]
        tool = [ROOT / "tools" / "train_det.py", "steady_det.py", "--work-dir", name, "--resume", *options]
        assert f"{length}/{length}  lr" in finish(start(tool, processes=n, cwd=steady, PYTHONPATH=path))
    parts = [losses_of(file) for file in sorted((steady / name).glob("*/vis_data/scalars.json"))]
    assert list(map(len, parts)) == [3, 3]
    assert parts[0] + parts[1] == pytest.approx(losses(two_runs[0]), rel=2e-4)  # the same batches
    a, b = (read_checkpoint(folder / "last.pth")["state_dict"] for folder in (two_runs[0], steady / name))
    torch.testing.assert_close(b, a, atol=2e-4, rtol=2e-3)


ENDS = """
    import os, sys
    from resdet.cli.running import run

    def main():
        import torch
        from resdet.engine import distributed
        from resdet.errors import InputError

        distributed.start("mpi", timeout=int(sys.argv[2]))
        if distributed.rank() == 1 and sys.argv[1] == "mistake":
            raise InputError("a picture", found="nothing", needed="pixels")
        if distributed.rank() == 1 and sys.argv[1] == "fault":
            raise KeyError("no such key")
        if distributed.rank() == 1 and sys.argv[1] == "kill":
            os.kill(os.getpid(), 9)
        distributed.mean(torch.ones(2))
        print("done")

    run(main)
"""


def two_ends(tmp_path: Path, kind: str, *, port: int, timeout: int = 60, ranks: str = "01") -> list[tuple[int, str]]:
    """Exit codes and outputs."""
    (tmp_path / "ends.py").write_text(textwrap.dedent(ENDS))
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": str(ROOT)}
    processes = []
    for rank in ranks:
        variables = dict(zip(distributed.VARIABLES["mpi"], (rank, "2", rank), strict=True))
        processes.append(start(["ends.py", kind, timeout], processes=1, cwd=tmp_path, **where, **variables))
    outputs = [process.communicate(timeout=100)[0] for process in processes]
    return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]


def test_processes_that_end_well(tmp_path):
    assert two_ends(tmp_path, "none", port=free_port()) == [(0, "done\n")] * 2


@pytest.mark.parametrize(
    ("kind", "told", "own"),
    [
        ("mistake", "error: process 1 ended (a picture)\n", "error: a picture\n  found:  nothing\n  needed: pixels\n"),
        ("fault", "error: process 1 ended (KeyError: 'no such key')\n", None),
        ("kill", "error: another process has ended\n", ""),
    ],
)
def test_a_process_that_ends_stops_the_others_with_one_line(tmp_path, kind, told, own):
    (code, other), (own_code, output) = two_ends(tmp_path, kind, port=free_port())
    assert (code, other) == (1, told)
    assert own_code in ((1,) if kind != "kill" else (-9,))
    assert output == own if own is not None else output.startswith("Traceback") and "KeyError" in output


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_process_that_is_missing(tmp_path, rank):
    ((code, output),) = two_ends(tmp_path, "none", port=(port := free_port()), timeout=2, ranks=rank)
    assert code == 1 and output.startswith(f"error: process {rank} of 2, meeting at 127.0.0.1:{port}\n  found: ")
    assert "imed out" in output and "within 2 s" in output and output.count("\n") == 3


def test_a_port_in_use(tmp_path):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        ((code, output),) = two_ends(tmp_path, "none", port=taken.getsockname()[1], timeout=2, ranks="0")
    assert code == 1 and "found:  a port in use\n  needed: MASTER_PORT=<a free port>" in output


def test_jobs_of_one_machine_meet_at_ports_of_their_own(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    first = distributed._port_of_job()
    assert first == distributed._port_of_job() and 20_000 <= first < 30_000
    monkeypatch.setenv("SLURM_JOB_ID", "4712")
    assert distributed._port_of_job() != first


def test_a_batch_must_be_divisible(det_config, monkeypatch):
    from resdet.engine.experiment import build_experiment, train_loader

    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    experiment = build_experiment(load_config(det_config), load_init=False)
    with pytest.raises(InputError, match=r"loader\.batch_size\n.*2\n.*a multiple of 3"):
        train_loader(experiment)


def test_the_address_that_slurm_processes_meet_at(monkeypatch):
    monkeypatch.setenv("SLURM_NODELIST", "gpu[3-4]")
    monkeypatch.setenv("SLURM_NNODES", "1")
    assert distributed._first_slurm_host() == "127.0.0.1"
    monkeypatch.setenv("SLURM_NNODES", "2")
    answer = subprocess.CompletedProcess([], 0, stdout="gpu3\ngpu4\n")
    monkeypatch.setattr(distributed.subprocess, "run", lambda command, **how: answer)
    assert distributed._first_slurm_host() == "gpu3"
