from __future__ import annotations

import logging
import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from resdet.engine import hooks
from resdet.engine.hooks import Checkpoints, FiniteLoss, Progress, StepSeed
from resdet.errors import InputError
from resdet.structures import Target


def runner_at(step=0, seed=0, **more):
    loop = SimpleNamespace(val_interval=4, stop_training=False, validated=-1)
    facts = {"iter": step, "seed": seed, "max_iters": 10, "val_loop": object(), "train_loop": loop}
    return SimpleNamespace(**facts, logger=logging.getLogger("test"), work_dir="w", **more)


def target(image_id):
    return Target(torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(0).bool(), image_id, (1, 1))


class OnGpu(Tensor):
    """A tensor that says that it is on a GPU."""

    is_cuda = True


# --- StepSeed


def draw(step, seed=0, rank=0, monkeypatch=None):
    StepSeed().before_train_iter(runner_at(step, seed), step)
    return torch.rand(3)


def test_a_step_draws_the_same_whatever_came_before():
    first = draw(5)
    torch.rand(100)
    torch.testing.assert_close(draw(5), first, rtol=0, atol=0)


def test_steps_seeds_and_processes_draw_differently(monkeypatch):
    drawn = [draw(5), draw(6), draw(5, seed=1)]
    monkeypatch.setattr(hooks.distributed, "rank", lambda: 1)
    drawn.append(draw(5))
    assert len({tuple(d.tolist()) for d in drawn}) == 4


# --- FiniteLoss

BATCH = ([None, None], [target(17), target(4)])


def outputs(value, kind=Tensor):
    losses = {"loss_box": torch.tensor(value), "loss_class": torch.tensor(0.5), "accuracy": torch.tensor(1.0)}
    return {"loss": torch.tensor(value + 0.5).as_subclass(kind), **losses}


def test_a_sound_loss_passes():
    hook = FiniteLoss(at_once=False)
    hook.after_train_iter(runner_at(0), 0, BATCH, outputs(1.0))
    hook.before_save_checkpoint(runner_at(0), {})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_loss_is_told_with_step_names_and_images(value):
    with pytest.raises(InputError) as caught:
        FiniteLoss(at_once=False).after_train_iter(runner_at(6), 6, BATCH, outputs(value))
    where, found, needed = str(caught.value).splitlines()
    assert where == "training, step 7, images [17, 4]"
    assert f"loss_box = {value:g}" in found
    assert "loss_class = 0.5" in found
    assert "accuracy" not in found
    assert "optimizer.lr" in needed


def test_a_classification_batch_has_no_ids():
    batch = (torch.zeros(2, 3, 4, 4), torch.zeros(2))
    with pytest.raises(InputError, match=r"^training, step 1\n"):
        FiniteLoss(at_once=False).after_train_iter(runner_at(0), 0, batch, outputs(float("nan")))


def test_on_a_gpu_it_looks_one_step_later():
    hook = FiniteLoss(at_once=False)
    other = ([None], [target(99)])
    hook.after_train_iter(runner_at(0), 0, BATCH, outputs(float("nan"), OnGpu))
    with pytest.raises(InputError, match=r"step 1, images \[17, 4\]"):
        hook.after_train_iter(runner_at(1), 1, other, outputs(1.0, OnGpu))


def test_on_a_gpu_it_looks_before_a_checkpoint_is_written():
    hook = FiniteLoss(at_once=False)
    hook.after_train_iter(runner_at(0), 0, BATCH, outputs(float("nan"), OnGpu))
    with pytest.raises(InputError, match="step 1, images"):
        hook.before_save_checkpoint(runner_at(0), {})


def test_at_once():
    with pytest.raises(InputError, match="step 1, images"):
        FiniteLoss(at_once=True).after_train_iter(runner_at(0), 0, BATCH, outputs(float("nan"), OnGpu))


# --- Checkpoints


def recording(step=0):
    saved = []
    runner = runner_at(step)
    runner.save_checkpoint = lambda folder, name, meta: saved.append((name, meta["step"], meta["best"]))
    return runner, saved


def test_last_is_written_every_so_often_and_at_the_end():
    runner, saved = recording()
    hook = Checkpoints(every=2, score="AP")
    for runner.iter in range(10):
        hook.after_train_iter(runner, runner.iter)
    # Steps 4 and 8 validate, and are saved before, too; 10 is the end.
    assert [(name, step) for name, step, _ in saved] == [("last.pth", step) for step in (2, 4, 6, 8, 10)]


def test_best_is_written_when_it_is_before_last():
    runner, saved = recording()
    hook = Checkpoints(every=100, score="AP")
    for runner.iter, score in ((1, 0.2), (2, 0.1), (3, 0.2), (4, 0.3)):
        hook.after_val_epoch(runner, {"AP": score})
    assert saved == [
        *(("best.pth", 1, 0.2), ("last.pth", 1, 0.2), ("last.pth", 2, 0.2), ("last.pth", 3, 0.2)),
        *(("best.pth", 4, 0.3), ("last.pth", 4, 0.3)),
    ]
    assert hook.figures == {"AP": 0.3}


def test_patience():
    runner, _ = recording()
    hook = Checkpoints(every=100, score="AP", patience=2)
    for score, stops in ((0.2, False), (0.2, False), (0.2001, False), (0.1, False), (0.2, True)):
        hook.after_val_epoch(runner, {"AP": score})
        assert runner.train_loop.stop_training is stops


def test_what_it_knows_survives(tmp_path):
    runner, _ = recording()
    runner.work_dir = tmp_path
    meta = {"best": 0.4, "without_better": 1, "figures": {"AP": 0.3}}
    hook = Checkpoints(every=100, score="AP", patience=2)
    hook.after_load_checkpoint(runner, {"meta": meta})
    assert hook.best == -math.inf  # resumed into a folder without a best.pth: the next validation writes one
    (tmp_path / "best.pth").touch()
    hook.after_load_checkpoint(runner, {"meta": meta})
    assert (hook.best, hook.figures, runner.train_loop.stop_training) == (0.4, {"AP": 0.3}, False)
    hook.after_val_epoch(runner, {"AP": 0.4})
    assert runner.train_loop.stop_training


# --- Progress


def progress(monkeypatch, times, *, every, batch_size):
    clock = iter(times)
    monkeypatch.setattr(hooks.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(hooks.sys.stdout, "isatty", lambda: False, raising=False)
    return Progress(every=every, batch_size=batch_size)


def test_progress_line(monkeypatch, caplog):
    # Two steps of 4 images in 2 s: 4 images/s; 8 of 10 steps are left at 1 s each. Losses 1 and 3: mean 2.
    hook = progress(monkeypatch, [0, 10, 10, 12], every=2, batch_size=4)
    seen = []
    visualizer = SimpleNamespace(add_scalars=lambda values, step: seen.append((step, values)))
    optim = SimpleNamespace(get_lr=lambda: {"lr": [0.01]})
    runner = runner_at(visualizer=visualizer, optim_wrapper=optim)
    hook.before_train(runner)
    with caplog.at_level(logging.INFO):
        for runner.iter, loss in ((0, 1.0), (1, 3.0)):
            hook.after_train_iter(runner, runner.iter, None, {"loss": torch.tensor(loss)})
    assert caplog.messages == ["step 2/10  lr 1.00e-02  loss 2.0000  4.0 images/s  0:00:08 left"]
    assert seen == [(2, {"loss": 2.0, "lr": 0.01, "images_per_second": 4.0})]


def test_a_validation_does_not_count_as_training_time(monkeypatch):
    # The window of two steps lasts from 10 to 112, but 100 s of it were a validation: 8 images in 2 s.
    hook = progress(monkeypatch, [0, 10, 10, 11, 111, 112], every=2, batch_size=4)
    seen = []
    visualizer = SimpleNamespace(add_scalars=lambda values, step: seen.append(values))
    runner = runner_at(visualizer=visualizer, optim_wrapper=SimpleNamespace(get_lr=lambda: {"lr": [0.01]}))
    hook.before_train(runner)
    hook.after_train_iter(runner, 0, None, {"loss": torch.tensor(1.0)})
    hook.before_val_epoch(runner)
    hook.after_val_epoch(runner, {"AP": 0.5, "none": None})
    runner.iter = 1
    hook.after_train_iter(runner, 1, None, {"loss": torch.tensor(1.0)})
    assert seen[0] == {"AP": 0.5}
    assert seen[1]["images_per_second"] == 4.0
