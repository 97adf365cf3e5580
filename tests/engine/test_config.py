from __future__ import annotations

import os
from pathlib import Path

import pytest

from resdet.backbones.registry import BACKBONES
from resdet.engine.config import SECTIONS, load_config
from resdet.engine.settings import Optimizer
from resdet.errors import InputError


def refuse(path, *options):
    with pytest.raises(InputError) as caught:
        load_config(path, options)
    return str(caught.value)


def test_defaults_are_filled_in(det_config):
    config = load_config(det_config)
    assert config.given.keys() <= set(SECTIONS)  # what it imports is not in it
    settings = config.optimizer
    assert settings == Optimizer(lr=0.01, batch_size=2, clip_norm=10.0)
    assert config.publish.statistics_images == 10_000  # a section that is not in the file
    assert config.schedule.milestones == (4,)


def test_call_supplies_what_is_left_out(det_config):
    net = load_config(det_config).model(num_classes=3, taken_by_nobody=1)
    assert net.num_classes == 3
    assert net.preprocess.longer_side == 96
    assert load_config(det_config, ["model.num_classes=5"]).model(num_classes=3).num_classes == 5


def test_a_dumped_config_reads_again(det_config, tmp_path):
    config = load_config(det_config)
    (tmp_path / "dumped.py").write_text(config.text)
    again = load_config(tmp_path / "dumped.py")
    assert again.model == config.model
    assert again.optimizer == config.optimizer


def test_it_does_not_matter_where_one_stands(tmp_path, monkeypatch):
    path = Path(__file__).parents[2] / "configs" / "frcnn_r101_fpn_coco.py"
    here = load_config(path).text
    (tmp_path / "_base_").mkdir()
    (tmp_path / "_base_" / "coco.py").write_text("task = 'another'")
    monkeypatch.chdir(tmp_path)
    assert load_config(path).text == here
    assert load_config(os.path.relpath(path)).text == here


def test_options_override(det_config):
    config = load_config(
        det_config,
        [
            "optimizer.lr=0.5",
            "model.anchor_sizes=(8, 16, 32, 64, 128)",
            "publish.statistics_images=None",  # a section that is not in the file
            "loader.group_aspect=false",
            "train_data.image_root=a=b",  # the first = counts; no literal, so a text
            "metric=voc12",
            "augmentation=('flip', 'crop')",
            "model.init=none",
        ],
    )
    assert config.optimizer.lr == 0.5
    assert config.optimizer.batch_size == 2  # its neighbour stays
    assert config.model.settings.anchor_sizes == (8, 16, 32, 64, 128)
    assert config.publish.statistics_images is None
    assert config.loader.group_aspect is False
    assert config.train_data.settings.image_root == "a=b"
    assert (config.metric, config.augmentation, config.model.settings.init) == ("voc12", ("flip", "crop"), None)
    assert load_config(det_config).optimizer.lr == 0.01  # and the file is as it was


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("optimizer.lr", ["no '='"]),
        ("=3", ["no '='"]),
        ("optimiser.lr=1", ["'optimiser'", "'optimizer'"]),
        ("modle.init=x", ["'modle'", "'model'"]),
        ("optimizer.momentun=1", ["'momentun'", "'momentum'", "optimizer"]),
        ("model.backbon=resnet18", ["'backbon'", "'backbone'", "model"]),
        ("test_data.imageroot=x", ["'imageroot'", "'image_root'", "test_data"]),
        ("optimizer=3", ["optimizer.key=value"]),
        ("metric.kind=coco", ["metric=value"]),
        ("loader.batch_size.x=3", ["loader.key=value"]),
        ("model.anchor_sizes.0=3", ["model.key=value"]),
        ("loader.batch_size=1.5", ["loader.batch_size", "1.5", "int"]),
        ("loader.batch_size=True", ["loader.batch_size", "True", "int"]),
        ("run.amp=bf61", ["run.amp", "'bf61'", "bf16"]),
        ("schedule.milestones=3", ["schedule.milestones", "3", "tuple"]),
        ("schedule.milestones=('a',)", ["schedule.milestones", "tuple"]),
        ("optimizer.lr=fast", ["optimizer.lr", "'fast'", "float"]),
        ("model.nms_iou=high", ["model.nms_iou", "'high'", "float"]),
        ("model.shorter_side=64.5", ["model.shorter_side", "64.5", "int"]),
        ("model.train_proposals=(1,2,3)", ["model.train_proposals", "tuple[int, int]"]),
        ("metric=coc", ["'coc'", "'coco'"]),
        ("task=detect", ["'detect'", "'detection'"]),
        ("augmentation=flp", ["augmentation", "'flp'", "'flip'"]),
        ("loader.batch_size=0", ["loader.batch_size", "0", "[1,"]),
        ("loader.workers=-1", ["loader.workers", "-1", "[0,"]),
        ("optimizer.lr=-0.1", ["optimizer.lr", "-0.1"]),
        ("run.ema=1.5", ["run.ema", "1.5"]),
        ("run.log_every=0", ["run.log_every"]),
        ("schedule.length=0", ["schedule.length"]),
        ("optimizer.lr=1e999", ["optimizer.lr", "inf"]),
    ],
)
def test_wrong_options(det_config, option, words):
    message = refuse(det_config, option)
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("optimizer =", "optimiser ="), ["unknown section 'optimiser'", "'optimizer'"]),
        (("log_every=1", "log_evry=1"), ["section 'run'", "'log_evry'", "'log_every'"]),
        (("warmup_steps", "warm_up_steps"), ["section 'schedule'", "'warm_up_steps'", "'warmup_steps'"]),
        (("workers=0", "worker=0"), ["section 'loader'", "'worker'", "'workers'"]),
        (("clip_norm", "clip_nrm"), ["section 'optimizer'", "'clip_nrm'", "'clip_norm'"]),
        (("head_width", "headwidth"), ["section 'model'", "'headwidth'", "'head_width'"]),
        (("annotation_file", "annotations_file"), ["section 'train_data'", "'annotation_file'"]),
        (('    backbone="resnet18-half",\n', ""), ["section 'model'", "no 'backbone'"]),
        (("type=faster_rcnn_fpn,", ""), ["'model'", "type=None", "a function"]),
        (("type=faster_rcnn_fpn", "type='nowhere.at_all'"), ["'model'", "nowhere.at_all", "a function"]),
        (('task = "detection"', ""), ["task=None", "detection"]),
        (("train_data =", "x ="), ["unknown section 'x'"]),
        (("run = dict(log_every=1)", "run = 1"), ["run = 1", "dict(...)"]),
        (("run = dict(log_every=1)", "run = dict("), ["SyntaxError"]),
        (("run = dict(log_every=1)", "run = dict(log_every=1 / 0)"), ["ZeroDivisionError"]),
        (("import read_coco", "import read_cocoa as read_coco"), ["read_cocoa"]),
        (("from resdet.datasets.coco", "from resdet.dataset.coco"), ["resdet.dataset"]),
    ],
)
def test_wrong_files(write_config, change, words):
    message = refuse(write_config(change))
    assert "changed.py" in message or "section" in message
    assert [word for word in words if word not in message] == [], message


def test_missing_section(write_config, det_config):
    line = next(line for line in det_config.read_text().splitlines() if line.startswith("test_data"))
    assert "no section 'test_data'" in refuse(write_config((line, "")))


def test_a_text_is_taken_as_it_is(det_config):
    options = ["train_data.image_root=2024", "test_data.image_root=a,(b", "model.backbone=None", "test.ensemble=a.pth"]
    config = load_config(det_config, options)
    assert config.train_data.settings.image_root == "2024"
    assert config.test_data.settings.image_root == "a,(b"
    assert config.model.settings.backbone == "None"
    assert config.test.ensemble == ("a.pth",)
    assert load_config(det_config, ["test.ensemble=('a', 'b')"]).test.ensemble == ("a", "b")


def test_values_of_python_need_no_reading(det_config):
    config = load_config(det_config, ["test.refine=2"], overrides={"test": {"vote": 0.5, "refine": 1}})
    assert (config.test.vote, config.test.refine) == (0.5, 2)


def test_missing_file_names_the_nearest(det_config):
    message = refuse(det_config.with_name("tiny_dat.py"))
    assert "tiny_dat.py" in message
    assert "no such file" in message
    assert "'tiny_det.py'" in message
    assert "no such file" in refuse(Path("nowhere") / "at_all.py")


def test_wrong_values_of_the_file_are_told_with_its_path(write_config):
    path = write_config(("length=6", "length='six'"))
    message = refuse(path)
    assert message == f"config {path}, schedule.length\n  found:  'six'\n  needed: float"


@pytest.mark.parametrize(
    "option",
    ["model.pyramid_channels=1000000", "model.head_width=1000000", "model.rpn_convs=65", "model.head_convs=65"],
)
def test_a_net_has_bounds(det_config, option):
    with pytest.raises(InputError, match=option.partition("=")[0]):
        load_config(det_config, [option])


def test_a_depth_has_bounds():
    with pytest.raises(InputError, match="600002 layers"):
        BACKBONES["cifar-resnet600002"]
