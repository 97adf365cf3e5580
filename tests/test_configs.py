"""Every config of the repository is read strictly, builds its net, and says how it is run."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from resdet.detection.build import from_checkpoint
from resdet.engine.config import load_config
from resdet.engine.optim import build_optimizer, build_schedulers
from resdet.localization.build import region_localizer

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
    if config.model.function is from_checkpoint:  # a config for eval and infer
        assert any("tools/eval.py" in line and f"configs/{path.name}" in line for line in lines)
        return
    assert f"configs/{path.name}" in commands[0]
    assert config.task.tool in commands[0]
    if "nproc_per_node" in commands[0]:
        processes = int(commands[0].partition("--nproc_per_node=")[2].split()[0])
        assert config.loader.batch_size % processes == 0
    if config.backbone is not None:
        config.backbone()
    with torch.device("meta"):
        net = config.model.updated(init=None)(num_classes=7)  # init: a file that an earlier run writes
    if config.task.name == "localization":
        assert net.num_classes == 7
        assert ("regions" in config.given) == (config.model.function is region_localizer)
    else:
        is_detector = config.task.name == "detection"
        head = net.roi_head.class_logits.out_features - 1 if is_detector else net.net.fc.out_features
        assert head == 7
    optimizer, schedule, run = config.optimizer, config.schedule, config.run
    wrapper = build_optimizer(net, optimizer, amp="off" if run.amp == "fp16" else run.amp, lr=optimizer.lr)
    build_schedulers(wrapper, schedule, 100)
    assert all(milestone < schedule.length for milestone in schedule.milestones)


def test_schedules_come_from_where_the_docstrings_say():
    # Appendix A: 8 images, 240k steps at 0.001 and 80k at 0.0001. detectron2's 1x: 16 images, 90k, 60k and 80k, 0.02.
    paper, today = (load_config(path) for path in CONFIGS if path.stem in ("frcnn_r101_coco", "frcnn_r50_fpn_coco"))
    schedule, optimizer = paper.schedule, paper.optimizer
    assert (schedule.length, schedule.milestones, schedule.unit) == (320_000, (240_000,), "step")
    assert (optimizer.lr, optimizer.batch_size, optimizer.arguments()) == (
        0.001,
        8,
        {"momentum": 0.9, "weight_decay": 1e-4},
    )
    schedule, optimizer = today.schedule, today.optimizer
    assert (schedule.length, schedule.milestones, optimizer.lr) == (90_000, (60_000, 80_000), 0.02)


def test_a_leaf_overrides_its_base():
    config = load_config(CONFIGS[NAMES.index("frcnn_r101_fpn_coco")])
    schedule = config.schedule
    assert (schedule.length, schedule.milestones) == (270_000, (210_000, 250_000))
    assert schedule.warmup_steps == 1000  # of the base, kept
    assert config.model.settings.backbone == "resnet101"
    base = load_config(CONFIGS[NAMES.index("frcnn_r50_fpn_coco")])  # not changed by the leaf
    assert (base.model.settings.backbone, base.schedule.length) == ("resnet50", 90_000)
