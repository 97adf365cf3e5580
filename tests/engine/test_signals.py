from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from resdet.engine.checkpoints import read_checkpoint
from resdet.engine.config import load_config
from resdet.engine.hooks import Progress
from resdet.engine.train import train
from resdet.errors import Stopped

TOOL = Path(__file__).parents[2] / "tools" / "train_det.py"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_stopped_run_goes_on_to_the_same_bits(det_config, tmp_path, monkeypatch, name):
    number, before = getattr(signal, name), signal.getsignal(getattr(signal, name))
    whole = tmp_path / "whole"
    train(load_config(det_config), work_dir=whole)
    real = Progress.after_train_iter

    def and_a_signal(self, runner, *rest, **named):
        real(self, runner, *rest, **named)
        if runner.iter == 2:  # in the third step
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch, pytest.raises(Stopped, match=f"{name} after step 3") as stopped:
        patch.setattr(Progress, "after_train_iter", and_a_signal)
        train(load_config(det_config), work_dir=tmp_path / "parts")
    assert stopped.value.number == number and signal.getsignal(number) is before
    assert read_checkpoint(tmp_path / "parts" / "last.pth")["meta"]["step"] == 3
    train(load_config(det_config), work_dir=tmp_path / "parts", resume="auto")
    a, b = (read_checkpoint(folder / "last.pth")["state_dict"] for folder in (whole, tmp_path / "parts"))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_the_tool_tells_how_to_go_on(det_config, tmp_path):
    options = ["--cfg-options", "schedule.length=5000", "schedule.milestones=()", "run.log_every=1"]
    command = [sys.executable, str(TOOL), str(det_config), "--work-dir", str(tmp_path), *options]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as run:
        while "step 2/" not in run.stdout.readline():
            assert run.poll() is None
        run.send_signal(signal.SIGTERM)
        _, told = run.communicate(timeout=100)
    assert run.returncode == 128 + signal.SIGTERM
    assert "--resume" in told and "Traceback" not in told
    assert (tmp_path / "last.pth").is_file()


def test_a_second_signal_stops_at_once(det_config, tmp_path, monkeypatch):
    real = Progress.after_train_iter

    def twice(self, runner, *rest, **named):
        real(self, runner, *rest, **named)
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Progress, "after_train_iter", twice)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(load_config(det_config), work_dir=tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not (tmp_path / "last.pth").exists()


def test_a_run_that_broke_off_in_its_validation_validates_when_it_goes_on(det_config, tmp_path, monkeypatch):
    config = load_config(det_config, ["schedule.validate_every=3"])
    whole = train(config, work_dir=tmp_path / "whole")

    def broken(*_, **__):
        raise RuntimeError("the picture is damaged")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="picture"):
        patch.setattr("resdet.engine.runner.EvaluationLoop.run", broken)
        train(config, work_dir=tmp_path / "parts")
    assert read_checkpoint(tmp_path / "parts" / "last.pth")["meta"]["step"] == 3  # no step is lost
    assert train(config, work_dir=tmp_path / "parts", resume="auto") == whole
    a, b = (read_checkpoint(tmp_path / name / "best.pth")["meta"] for name in ("whole", "parts"))
    assert (a["step"], a["best"]) == (b["step"], b["best"])


def test_a_finished_run_is_not_validated_again(det_config, tmp_path):
    config = load_config(det_config, ["schedule.validate_every=2"])
    train(config, work_dir=tmp_path)
    before = read_checkpoint(tmp_path / "last.pth")["meta"]
    for _ in range(2):
        assert train(config, work_dir=tmp_path, resume="auto") == before["figures"]
    assert read_checkpoint(tmp_path / "last.pth")["meta"]["without_better"] == before["without_better"]


def test_a_run_does_not_stop_between_two_updates(det_config, tmp_path, monkeypatch):
    real = Progress.after_train_iter

    def and_a_signal(self, runner, *rest, **named):
        real(self, runner, *rest, **named)
        if runner.iter == 2:  # in the third step, the first of an update
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Progress, "after_train_iter", and_a_signal)
    with pytest.raises(Stopped, match="after step 4"):
        train(load_config(det_config, ["optimizer.accumulate=2"]), work_dir=tmp_path)
