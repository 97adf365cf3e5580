"""Every config of the repository is read strictly, builds its net, and says how it is run."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from resdet.engine.config import call, load_config, read_settings
from resdet.engine.optim import build_optimizer, build_schedulers
from resdet.engine.predictor import from_checkpoint
from resdet.inference.settings import check
from resdet.localization.build import region_localizer
from resdet.localization.settings import check as check_localization

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))
NAMES = [path.stem for path in CONFIGS]


def test_there_are_configs():
    assert {"frcnn_r101_coco", "frcnn_r50_fpn_coco", "frcnn_r101_voc", "resnet101_imagenet", "demo_det"} <= set(NAMES)


@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_config(path):
    lines = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()
    commands = [line for line in lines if line.startswith("Command:")]
    assert commands, "the docstring says how it is run"

    config = load_config(path)
    if config.task != "classification":
        {"detection": check, "localization": check_localization}[config.task](read_settings(config, "test"))
    if config.model.type is from_checkpoint:  # a config for eval and infer
        assert any("tools/eval.py" in line and f"configs/{path.name}" in line for line in lines)
        return
    assert f"configs/{path.name}" in commands[0]
    tool = {"detection": "train_det", "classification": "train_cls", "localization": "train_loc"}[config.task]
    assert f"tools/{tool}.py" in commands[0]
    if "nproc_per_node" in commands[0]:
        processes = int(commands[0].partition("--nproc_per_node=")[2].split()[0])
        assert read_settings(config, "loader").batch_size % processes == 0
    config.model.pop("init", None)  # a file that an earlier run writes
    with torch.device("meta"):
        net = call(config, "model", num_classes=7)
    if config.task == "localization":
        assert net.num_classes == 7
        assert ("regions" in config) == (config.model.type is region_localizer)
    else:
        head = net.roi_head.class_logits.out_features - 1 if config.task == "detection" else net.net.fc.out_features
        assert head == 7
    optimizer, schedule, run = (read_settings(config, name) for name in ("optimizer", "schedule", "run"))
    wrapper = build_optimizer(net, optimizer, amp="off" if run.amp == "fp16" else run.amp, lr=optimizer.lr)
    build_schedulers(wrapper, schedule, 100)
    assert all(milestone < schedule.length for milestone in schedule.milestones)


def test_schedules_come_from_where_the_docstrings_say():
    # Appendix A: 8 images, 240k steps at 0.001 and 80k at 0.0001. detectron2's 1x: 16 images, 90k, 60k and 80k, 0.02.
    paper, today = (load_config(path) for path in CONFIGS if path.stem in ("frcnn_r101_coco", "frcnn_r50_fpn_coco"))
    schedule, optimizer = read_settings(paper, "schedule"), read_settings(paper, "optimizer")
    assert (schedule.length, schedule.milestones, schedule.unit) == (320_000, (240_000,), "step")
    assert (optimizer.lr, optimizer.batch_size, optimizer.momentum, optimizer.weight_decay) == (0.001, 8, 0.9, 1e-4)
    schedule, optimizer = read_settings(today, "schedule"), read_settings(today, "optimizer")
    assert (schedule.length, schedule.milestones, optimizer.lr) == (90_000, (60_000, 80_000), 0.02)


def test_a_leaf_overrides_its_base():
    config = load_config(CONFIGS[NAMES.index("frcnn_r101_fpn_coco")])
    schedule = read_settings(config, "schedule")
    assert (schedule.length, schedule.milestones) == (270_000, (210_000, 250_000))
    assert schedule.warmup_steps == 1000  # of the base, kept
    assert config.model.backbone == "resnet101"
    base = load_config(CONFIGS[NAMES.index("frcnn_r50_fpn_coco")])  # not changed by the leaf
    assert (base.model.backbone, base.schedule.length) == ("resnet50", 90_000)
