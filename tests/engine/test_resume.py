"""Runs that go on with other settings than their checkpoint had."""

from __future__ import annotations

import copy

import pytest
import torch

from resdet.engine.checkpoints import read_checkpoint
from resdet.engine.config import load_config
from resdet.engine.optim import build_optimizer, build_schedulers
from resdet.engine.resume import changes, follow, rates_of
from resdet.engine.settings import Optimizer, Schedule
from resdet.engine.train import train
from resdet.errors import InputError

SCHEDULES = [
    {"milestones": (3, 6), "warmup_steps": 4},
    {"milestones": ()},
    *({"policy": policy, "warmup_steps": 3} for policy in ("cosine", "linear", "poly", "exponential", "onecycle")),
]


def begin(schedule: dict, *, lr: float = 0.3) -> tuple:
    net = torch.nn.Linear(2, 2)
    optimizer = build_optimizer(net, Optimizer(norm_weight_decay=0.0), amp="off", lr=lr)
    return optimizer, build_schedulers(optimizer, Schedule(length=10, unit="step", **schedule), 1)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_a_followed_schedule_has_the_rates_of_one_that_was_stepped(schedule):
    whole, schedulers = begin(schedule)
    expected = []
    for _ in range(10):
        expected.append(whole.param_groups[0]["lr"])
        whole.step()
        for scheduler in schedulers:
            scheduler.step()
    for done in (0, 1, 4, 9):
        again, fresh = begin(schedule)
        rates = rates_of(again)
        state = copy.deepcopy(whole.state_dict())
        state["param_groups"][0].update(lr=77.0, momentum=0.1)
        again.load_state_dict(state)
        follow(again, rates, fresh, done)
        assert again.param_groups[0]["lr"] == expected[done]  # the same bits
        assert again.param_groups[0]["momentum"] == 0.9


def test_changes_by_hand():
    trained = {"optimizer.lr": 0.1, "loader.batch_size": 8, "run.seed": 0}
    assert changes("a.pth", trained, trained) == []
    assert changes("a.pth", {}, trained) == []  # of a version that kept none
    lines = changes("a.pth", trained, {**trained, "optimizer.lr": 0.2, "run.ema": None})
    assert lines == ["optimizer.lr: 0.1 in the checkpoint, 0.2 in the config"]
    with pytest.raises(InputError, match=r"resuming a.pth\n.*batch_size=4 in the config\n.*batch_size=8; .*load_from"):
        changes("a.pth", trained, {**trained, "loader.batch_size": 4})


def rate(folder) -> float:
    return read_checkpoint(folder / "last.pth")["optimizer"]["param_groups"][0]["lr"]


def test_a_run_goes_on_with_what_the_config_says(cls_config, tmp_path, capfd):
    quiet = ["schedule.unit=step", "schedule.validate_last=False", "schedule.validate_every=100"]
    first = [*quiet, "schedule.length=4", "schedule.milestones=(2,)", "optimizer.lr=0.5"]
    train(load_config(cls_config, first), work_dir=tmp_path)
    assert rate(tmp_path) == pytest.approx(0.05)
    changed = [*quiet, "schedule.length=6", "schedule.milestones=(5,)", "optimizer.lr=0.25", "optimizer.momentum=0.5"]
    train(load_config(cls_config, changed), work_dir=tmp_path, resume="auto")
    told = capfd.readouterr()
    for line in (
        "optimizer.lr: 0.5 in the checkpoint, 0.25 in the config",
        "schedule.milestones: [2.0] in the checkpoint, [5.0] in the config",
        "schedule.length: 4.0 in the checkpoint, 6.0 in the config",
    ):
        assert line in told.out + told.err
    assert rate(tmp_path) == pytest.approx(0.025)
    group = read_checkpoint(tmp_path / "last.pth")["optimizer"]["param_groups"][0]
    assert group["momentum"] == 0.5
    with pytest.raises(InputError, match=r"optimizer.type=Adam in the config[\s\S]*load_from"):
        train(load_config(cls_config, [*quiet, "optimizer.type=Adam"]), work_dir=tmp_path, resume="auto")
