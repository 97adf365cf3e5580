"""What users of mmengine bring along: hooks, visualization backends, optimizers, schedules."""

from __future__ import annotations

import json

import pytest
import torch

from resdet.benchmarks.dry_run import dry_run
from resdet.engine.config import load_config
from resdet.engine.evaluate import evaluate
from resdet.engine.experiment import build_experiment, load_experiment
from resdet.engine.train import train
from resdet.errors import InputError

HOOK = '''
from mmengine.hooks import Hook


class Counts(Hook):
    """Writes down which points were called."""

    def __init__(self, path):
        self.path = path

    def note(self, point):
        with open(self.path, "a") as file:
            file.write(point + "\\n")

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.note("before_train_iter")

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.note("after_train_iter")

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        self.note("before_val_iter")

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        assert len(outputs) == len(data_batch[0])
        self.note("after_val_iter")

    def before_test_iter(self, runner, batch_idx, data_batch=None):
        self.note("before_test_iter")

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.note("after_test_iter")

    def after_test_epoch(self, runner, metrics=None):
        self.note(f"tested {sorted(metrics)[0]}")
'''


def test_a_hook_of_ones_own_is_called_at_every_point(write_config, tmp_path, monkeypatch):
    (tmp_path / "my_hooks.py").write_text(HOOK)
    monkeypatch.syspath_prepend(tmp_path)
    seen = tmp_path / "seen.txt"
    path = write_config(
        (
            'task = "detection"',
            f'from my_hooks import Counts\n\ntask = "detection"\n'
            f'custom_hooks = [dict(type=Counts, path="{seen}", priority="LOW")]',
        )
    )
    train(load_config(path), work_dir=tmp_path / "run")
    points = seen.read_text().split("\n")
    assert points.count("before_train_iter") == points.count("after_train_iter") == 6
    assert points.count("before_val_iter") == points.count("after_val_iter") == 5  # five images of as many sizes
    assert points.count("before_test_iter") == 0
    evaluate(load_experiment(load_config(path), tmp_path / "run" / "last.pth"))
    points = seen.read_text().split("\n")
    assert points.count("before_test_iter") == points.count("after_test_iter") == 5
    assert "tested coco/AP" in points


def test_a_registered_hook_by_name(write_config, tmp_path):
    path = write_config(("run = dict(", 'custom_hooks = [dict(type="EMAHook", momentum=0.5)]\nrun = dict('))
    train(load_config(path, ["schedule.length=2"]), work_dir=tmp_path)
    assert (tmp_path / "last.pth").exists()


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ('custom_hooks = [dict(type="EMAHok")]', ["custom_hooks", "EMAHok", "'EMAHook'"]),
        ('custom_hooks = [dict(type="EmptyCacheHook", after_itr=True)]', ["EmptyCacheHook", "after_itr", "after_iter"]),
        ("custom_hooks = [3]", ["custom_hooks"]),
        ('visualizer = dict(vis_backends=[dict(type="WandBVisBackend")])', ["WandBVisBackend", "'WandbVisBackend'"]),
        ("visualizer = dict(backends=[])", ["'backends'", "'vis_backends'"]),
        ("visualizer = dict(vis_backends=3)", ["vis_backends", "3"]),
    ],
)
def test_misspelt_names_are_refused_with_the_nearest(write_config, section, words):
    with pytest.raises(InputError) as caught:
        load_config(write_config(("run = dict(", f"{section}\nrun = dict(")))
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_backend_of_mmengine_by_name(write_config, tmp_path):
    path = write_config(("run = dict(", 'visualizer = dict(vis_backends=[dict(type="LocalVisBackend")])\nrun = dict('))
    train(load_config(path, ["schedule.length=2"]), work_dir=tmp_path)
    (scalars,) = tmp_path.glob("*/vis_data/scalars.json")
    assert "loss" in json.loads(scalars.read_text().splitlines()[0])


@pytest.mark.parametrize(
    ("backend", "package"), [("WandbVisBackend", "wandb"), ("MLflowVisBackend", "mlflow"), ("AimVisBackend", "aim")]
)
def test_a_backend_whose_package_is_missing(write_config, tmp_path, monkeypatch, backend, package):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    path = write_config(("run = dict(", f'visualizer = dict(vis_backends=[dict(type="{backend}")])\nrun = dict('))
    with pytest.raises(InputError, match=f"no package {package}\n.*pip install {package}"):
        train(load_config(path), work_dir=tmp_path / "run")
    with pytest.raises(InputError, match=f"no package {package}"):
        dry_run(load_config(path), work_dir=tmp_path / "run")


def test_an_evaluation_is_no_run_of_its_own_there(write_config, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # so that a run would be refused
    path = write_config(("run = dict(", 'visualizer = dict(vis_backends=[dict(type="WandbVisBackend")])\nrun = dict('))
    assert "coco/AP" in evaluate(build_experiment(load_config(path), load_init=False))


def test_another_optimizer_and_schedule_train(write_config, tmp_path):
    path = write_config(
        ("optimizer = dict(lr=0.01,", 'optimizer = dict(type="AdamW", lr=1e-4, betas=(0.8, 0.9),'),
        ("milestones=(4,)", 'policy="onecycle"'),
    )
    train(load_config(path), work_dir=tmp_path)
    group = torch.load(tmp_path / "last.pth", weights_only=True)["optimizer"]["param_groups"][0]
    assert tuple(group["betas"]) == (0.8, 0.9)
