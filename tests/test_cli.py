"""The tools as a user meets them: what they write, what they say, and how they take mistakes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from resdet import cli
from resdet.cli import running
from resdet.engine.checkpoints import read_checkpoint
from resdet.engine.config import load_config
from resdet.engine.evaluate import evaluate
from resdet.engine.experiment import load_experiment
from resdet.files import held

ROOT = Path(__file__).parents[1]
TOOLS = sorted((ROOT / "tools").glob("*.py"))


def command(tool: str, *arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / "tools" / f"{tool}.py"), *map(str, arguments)]


def call(tool: str, *arguments: object) -> str | int | None:
    """Call a tool in this process; what it exits with: None, or the message that Python prints before it exits 1."""
    words = [str(argument) for argument in arguments]
    try:
        if tool in ("train_det", "train_cls"):
            cli.train({"train_det": "detection", "train_cls": "classification"}[tool], "", words)
        else:
            {"eval": cli.evaluate, "infer": cli.infer}[tool](words)
    except SystemExit as error:
        return error.code
    return None


def mistake(tool: str, *arguments: object) -> str:
    message = call(tool, *arguments)
    assert isinstance(message, str), f"exit {message!r}"
    assert message.startswith("error: ")
    assert "Traceback" not in message
    return message


# --- help


@pytest.mark.parametrize("tool", TOOLS, ids=[tool.stem for tool in TOOLS])
def test_help_is_quick_and_explains_every_flag(tool, tmp_path):
    began = time.perf_counter()
    done = subprocess.run([sys.executable, str(tool), "-h"], cwd=tmp_path, capture_output=True, text=True)
    assert time.perf_counter() - began < 3
    assert (done.returncode, done.stderr) == (0, "")
    options = done.stdout.partition("options:")[2].split("\n  -")[1:]
    assert len(options) >= 2
    for option in options:
        head, _, rest = option.partition("  ")
        assert len(" ".join(rest.split())) > 10, f"-{head} is not explained"


def test_the_promised_flags(capsys):
    common = ("--work-dir", "--cfg-options", "--launcher")
    for tool, flags in (
        ("train_det", (*common, "--resume", "--amp", "--auto-scale-lr")),
        ("train_cls", (*common, "--resume", "--amp", "--auto-scale-lr")),
        ("eval", (*common, "--out", "--detections")),
    ):
        assert call(tool, "-h") == 0
        shown = capsys.readouterr().out
        assert [flag for flag in flags if flag not in shown] == []


# --- runs


def test_train_evaluate_infer(det_config, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # data are given by absolute paths: any folder will do
    assert call("train_det", det_config, "--cfg-options", "schedule.length=4", "schedule.validate_every=2") is None
    work_dir = tmp_path / "work_dirs" / "tiny_det"
    assert read_checkpoint(work_dir / "last.pth")["meta"]["step"] == 4

    capsys.readouterr()
    assert call("eval", det_config, work_dir / "last.pth", "--out", "out/eval.json", "--amp") is None
    table = capsys.readouterr().out
    assert "AP50" in table and "green" in table
    record = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert set(record["figures"]) >= {"coco/AP", "coco/AP50", "coco/ARl"}
    assert [row["name"] for row in record["per_class"]] == ["blue", "green", "red"]
    assert record["config"]["path"] == str(det_config)
    assert "run = dict(amp='bf16'" in record["config"]["text"]
    assert len(record["checkpoint"]["sha256"]) == 64
    assert record["versions"]["torch"] == torch.__version__
    assert record["seed"] == 0

    assert call("infer", det_config, work_dir / "last.pth", tiny.images, "--score-threshold", "0.1") is None
    assert "13 images -> detections/" in capsys.readouterr().out
    written = json.loads((tmp_path / "detections" / "detections.json").read_text())
    assert len(written["images"]) == 13
    assert [category["name"] for category in written["categories"]] == ["blue", "green", "red"]
    for image in written["images"]:
        with Image.open(tmp_path / "detections" / f"{Path(image['file_name']).stem}.png") as picture:
            assert picture.size[0] >= image["width"]
    assert all(row["score"] >= 0.1 for row in written["annotations"])


def test_flags_of_training_arrive(det_config, tmp_path):
    options = ["--cfg-options", "schedule.length=1", "schedule.milestones=()", "schedule.warmup_steps=0"]
    options += ["optimizer.batch_size=4", "--work-dir", str(tmp_path)]
    assert call("train_det", det_config, "--amp", "--auto-scale-lr", *options) is None
    last = read_checkpoint(tmp_path / "last.pth")
    assert "amp='bf16'" in last["meta"]["config"]
    assert last["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.01 * 2 / 4)
    assert call("train_det", det_config, "--resume", *[o.replace("length=1", "length=2") for o in options]) is None
    last = read_checkpoint(tmp_path / "last.pth")
    assert last["meta"]["step"] == 2


def test_the_truth_scores_one(det_config, tiny, tmp_path, capsys):
    out = tmp_path / "eval.json"
    assert call("eval", det_config, "--detections", tiny.val, "--out", out) is None
    figures = json.loads(out.read_text())["figures"]
    assert (figures["coco/AP"], figures["coco/AP50"]) == (pytest.approx(1.0), pytest.approx(1.0))
    assert "1.000" in capsys.readouterr().out


def test_detections_that_were_saved_score_the_same(det_config, trained, tmp_path):
    saved, first, second = (tmp_path / name for name in ("rows.json", "first.json", "second.json"))
    assert call("eval", det_config, trained / "last.pth", "--save-detections", saved, "--out", first) is None
    assert call("eval", det_config, "--detections", saved, "--out", second) is None
    a, b = (json.loads(path.read_text()) for path in (first, second))
    assert a["figures"] == b["figures"]
    assert a["per_class"] == b["per_class"]


def test_a_test_set_without_boxes_gives_results_and_no_figures(det_config, trained, tiny, tmp_path, capsys):
    content = json.loads(tiny.val.read_text())
    del content["annotations"]
    (tmp_path / "testdev.json").write_text(json.dumps(content))
    last, blind = trained / "last.pth", f"test_data.annotation_file={tmp_path / 'testdev.json'}"
    seen, known, out = (tmp_path / name for name in ("seen.json", "known.json", "out.json"))
    assert call("eval", det_config, last, "--save-detections", known) is None
    capsys.readouterr()
    for metric in ("coco", "voc07"):
        options = ["--cfg-options", blind, f"metric={metric}"]
        assert call("eval", det_config, last, "--save-detections", seen, "--out", out, *options) is None
        assert "No figures: " in capsys.readouterr().out
        assert json.loads(seen.read_text()) == json.loads(known.read_text()) != []
        assert json.loads(out.read_text())["figures"] == {}
    message = mistake("eval", det_config, last, "--cfg-options", blind)
    assert "found:  no boxes" in message and "--save-detections" in message
    assert "no boxes" in mistake("eval", det_config, "--detections", known, "--cfg-options", blind)
    assert "no boxes" in mistake("train_det", det_config, "--work-dir", tmp_path / "run", "--cfg-options", blind)


def test_a_console_that_cannot_print_a_name(det_config, trained, tiny, tmp_path):
    names = ("猫", "Straße", "ž")
    content = json.loads(tiny.val.read_text())
    for category, name in zip(content["categories"], names, strict=True):
        category["name"] = name
    (tmp_path / "val.json").write_text(json.dumps(content))
    arguments = [det_config, "--detections", tmp_path / "val.json", "--out", tmp_path / "out.json"]
    words = command("eval", *arguments, "--cfg-options", f"test_data.annotation_file={tmp_path / 'val.json'}")
    for encoding, told in (
        ("cp1252", ("\\u732b ", "Straße ", "ž ")),
        ("ascii", ("\\u732b ", "Stra\\xdfe ", "\\u017e ")),
    ):
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        ran = subprocess.run(words, capture_output=True, env=environment)
        lines = ran.stdout.decode(encoding).splitlines()
        assert ran.returncode == 0, ran.stderr
        assert all(any(line.startswith(name) for line in lines) for name in told), lines
        rows = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["per_class"]
        assert sorted(row["name"] for row in rows) == sorted(names)
        ran = subprocess.run([*words, "test_data.classes=鳥"], capture_output=True, env=environment)
        assert ran.returncode == 1 and b"found:  '\\u9ce5'" in ran.stderr and b"Traceback" not in ran.stderr


def test_looking_more_than_once(det_config, trained, tiny, tmp_path, capsys):
    last = trained / "last.pth"
    flags = ["--refine", "--vote", "--scales", "48", "64", "--flip", "--nms", "gaussian", "--ensemble", str(last)]
    out = tmp_path / "eval.json"
    assert call("eval", det_config, last, *flags, "--out", out) is None
    printed = capsys.readouterr().out
    costs = json.loads(out.read_text())["seconds_per_image"]
    assert f"{sum(costs.values()):.3f} s per image: " in printed
    assert {"refinement", "voting", "backbone"} <= set(costs) and "voting" in printed
    config = load_config(det_config, ["test.refine=1", "test.vote=0.5", "test.scales=(48,64)", "test.flip=True"])
    config = replace(config, test=config.test.updated(nms="gaussian", ensemble=(str(last),)))
    figures = json.loads(out.read_text())["figures"]
    assert figures == pytest.approx(evaluate(load_experiment(config, last)), abs=1e-9)
    sizes = ["--sizes", "48", "--merge", "wbf", "--score-threshold", "0.05", "--cfg-options", "test.max_per_image=1"]
    assert call("infer", det_config, last, tiny.images, "--out", tmp_path / "seen", *sizes) is None
    rows = json.loads((tmp_path / "seen" / "detections.json").read_text())
    assert 0 < len(rows["annotations"]) <= len(rows["images"])
    assert "s per image: " in capsys.readouterr().out
    low = ["--cfg-options", "test.score_threshold=0.01", "test.max_per_image=3"]
    assert call("infer", det_config, last, tiny.images, "--out", tmp_path / "low", *low) is None
    many = json.loads((tmp_path / "low" / "detections.json").read_text())["annotations"]
    assert any(row["score"] < 0.5 for row in many)  # the config's threshold, not that of pictures


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--scales", "64", "48"], "rising order"),
        (["--vote", "0"], "test.vote"),
        (["--vote", "1.5"], "test.vote"),
        (["--refine", "-1"], "test.refine"),
        (["--merge", "wbf"], "test.flip=True, test.sizes=(...) or test.tiles"),
        (["--tiles", "10"], "test.tiles"),
        (["--ensemble", "missing.pth"], "no such file"),
        (["--cfg-options", "test.nms='harsh'"], "'hard'"),
        (["--cfg-options", "test.refines=1"], "unknown key 'refines'"),
    ],
)
def test_wrong_ways_to_look(det_config, trained, flags, words):
    assert words in call("eval", det_config, trained / "last.pth", *flags)


def test_ways_to_look_need_a_detector(det_config, cls_config, trained, tiny, capsys):
    assert "unknown key 'refine'" in call("eval", cls_config, trained / "last.pth", "--refine")
    assert call("eval", det_config, "--detections", tiny.val, "--refine") == 2
    assert "test.refine=1 needs a CHECKPOINT" in capsys.readouterr().err


def test_classification_tool(cls_config, tmp_path, capsys):
    assert call("train_cls", cls_config, "--work-dir", tmp_path) is None
    assert (tmp_path / "resnet18-half.safetensors").is_file()
    capsys.readouterr()
    assert call("eval", cls_config, tmp_path / "best.pth", "--out", tmp_path / "eval.json") is None
    assert "top1_error" in capsys.readouterr().out
    assert "top1" in json.loads((tmp_path / "eval.json").read_text())["figures"]


def test_a_killed_run_goes_on(det_config, tmp_path):
    options = ["--cfg-options", "schedule.length=24", "run.checkpoint_every=2", "schedule.validate_every=24"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    threads = str(torch.get_num_threads())  # other threads, other rounding
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.Popen(
        command("train_det", det_config, "--work-dir", killed, *options),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 100
        while not (killed / "last.pth").exists():
            assert run.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
    step = read_checkpoint(killed / "last.pth")["meta"]["step"]
    assert 2 <= step < 24
    assert call("train_det", det_config, "--work-dir", killed, "--resume", *options) is None
    assert call("train_det", det_config, "--work-dir", whole, *options) is None
    a, b = (read_checkpoint(folder / "last.pth") for folder in (whole, killed))
    assert b["meta"]["step"] == 24
    if not torch.cuda.is_available():  # the first part ran on the CPU
        assert all(torch.equal(a["state_dict"][key], b["state_dict"][key]) for key in a["state_dict"])


# --- mistakes


def test_a_mistake_is_one_message_on_stderr_and_exit_code_1(tmp_path):
    done = subprocess.run(
        command("train_det", tmp_path / "nothing.py"), cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: config {tmp_path}/nothing.py\n  found:  no such file\n  needed: ")
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("train.json", "trian.json"), ["trian.json"]),
        (("/JPEGImages", "/JPGImages"), ["JPGImages", "no such folder"]),
        (("head_width", "head_widht"), ["'head_widht'", "'head_width'"]),
        (('backbone="resnet18-half"', 'backbone="resnet18-hlaf"'), ["resnet18-hlaf", "resnet18-half"]),
        (("frozen_stages=0,", 'frozen_stages=0, init="gone.safetensors",'), ["gone.safetensors", "no such file"]),
        (("augmentation = ()", 'augmentation = ("flop",)'), ["'flop'", "'flip'"]),
        (("batch_size=2, workers", "batch_size=0, workers"), ["loader.batch_size", "0"]),
        (("anchor_sizes=(16, 24, 32, 48, 64)", "anchor_sizes=(16, 24)"), ["anchor sizes", "5 feature levels"]),
    ],
)
def test_mistakes_in_a_detection_config(write_config, tmp_path, change, words):
    message = mistake("train_det", write_config(change), "--work-dir", tmp_path / "w")
    assert [word for word in words if word not in message] == [], message
    assert not (tmp_path / "w").exists()


def test_a_tool_for_another_task(det_config, cls_config, trained, tiny, tmp_path):
    assert "tools/train_cls.py" in mistake("train_det", cls_config)
    assert "tools/train_det.py" in mistake("train_cls", det_config)
    assert "tiny_cls.py" in mistake("infer", cls_config, trained / "last.pth", tiny.images)
    assert "a detection config" in mistake("eval", cls_config, "--detections", tmp_path / "x.json")


def test_wrong_options(det_config):
    assert "'learning_rate'" in mistake("train_det", det_config, "--cfg-options", "optimizer.learning_rate=1")
    assert "'optimizer'" in mistake("eval", det_config, "x.pth", "--cfg-options", "optimzer.lr=1")
    assert "torchrun" in mistake("train_det", det_config, "--launcher", "pytorch")
    assert call("train_det", det_config, "--launcher", "torch") == 2  # argparse: usage
    assert call("eval", det_config) == 2


def test_wrong_checkpoints(det_config, cls_config, trained, tiny, tmp_path):
    broken, foreign = tmp_path / "broken.pth", tmp_path / "foreign.pth"
    broken.write_bytes((trained / "last.pth").read_bytes()[:5000])
    torch.save({"model": {}}, foreign)
    last = trained / "last.pth"
    for tool, config, checkpoint, words in (
        ("eval", det_config, tmp_path / "none.pth", "no such file"),
        ("eval", det_config, broken, str(broken)),
        ("eval", det_config, foreign, "of this program"),
        ("eval", cls_config, last, "a net of detection"),
        ("infer", det_config, broken, str(broken)),
    ):
        images = [tiny.images] if tool == "infer" else []
        assert words in mistake(tool, config, checkpoint, *images)
    assert "pyramid_channels=16" in mistake("eval", det_config, last, "--cfg-options", "model.pyramid_channels=24")
    assert "of this program" in mistake("train_det", det_config, "--resume", foreign, "--work-dir", tmp_path / "w")
    assert not list((tmp_path / "w").glob("*.pth"))


def test_an_image_that_does_not_decode(write_config, tiny, tmp_path):
    """In this process, and told by a loader process without its traceback."""
    images = tmp_path / "images"
    images.mkdir()
    for path in tiny.images.iterdir():
        (images / path.name).write_bytes(path.read_bytes() if path.stem != "000003" else path.read_bytes()[:200])
    config = write_config((str(tiny.images), str(images)))
    for workers in (0, 1):
        options = ["--work-dir", tmp_path / "w", "--cfg-options", f"loader.workers={workers}"]
        message = mistake("train_det", config, *options)
        assert "000003.png" in message
        assert message.count("\n") <= 3


def test_wrong_results_files(det_config, tiny, tmp_path):
    rows = [{"image_id": 90, "category_id": 1, "bbox": [0, 0, 5, 5], "score": 0.5}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "broken.json").write_text("[{]")
    assert "category_id 1" in mistake("eval", det_config, "--detections", tmp_path / "rows.json")
    assert "broken JSON" in mistake("eval", det_config, "--detections", tmp_path / "broken.json")
    assert "gone.json" in mistake("eval", det_config, "--detections", tmp_path / "gone.json")


def test_no_images_to_look_at(det_config, trained, tmp_path):
    for path, words in ((tmp_path / "none", "no such file or folder"), (tmp_path, "a folder without images")):
        assert words in mistake("infer", det_config, trained / "last.pth", path, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_interrupt_is_no_traceback(capsys):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        cli.run(interrupted)
    assert "--resume" in caught.value.code


def test_an_environment_that_does_not_work(monkeypatch):
    def broken():
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(running, "_try_torch", broken)
    with pytest.raises(SystemExit) as caught:
        cli.run(lambda: None)
    assert "torchvision::nms does not exist" in caught.value.code
    assert "pip install" in caught.value.code


def test_wrong_flags_of_inference(det_config, trained, tiny, tmp_path):
    last = trained / "last.pth"
    taken = tmp_path / "taken"
    taken.write_text("a file")
    assert "device 'gpu'" in mistake("infer", det_config, last, tiny.images, "--device", "gpu")
    assert "batch size" in mistake("infer", det_config, last, tiny.images, "--batch-size", 0)
    assert str(taken) in mistake("infer", det_config, last, tiny.images, "--out", taken)
    assert taken.read_text() == "a file"


def test_images_of_one_name_keep_a_picture_each(det_config, trained, tiny, tmp_path):
    one = sorted(tiny.images.iterdir())[0]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.png").write_bytes(one.read_bytes())
    assert (
        call("infer", det_config, trained / "last.pth", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "o") is None
    )
    assert sorted(path.name for path in (tmp_path / "o").glob("*.png")) == ["same.png", "same_1.png"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 is right there")
def test_mixed_precision_that_is_named_wins_over_the_flag(det_config, tmp_path):
    message = mistake("train_det", det_config, "--amp", "--work-dir", tmp_path / "w", "--cfg-options", "run.amp=fp16")
    assert "fp16 on a machine without a GPU" in message


def test_a_run_is_not_written_over(det_config, tmp_path):
    short = ["--cfg-options", "schedule.length=1", "--cfg-options", "schedule.validate_every=1"]  # both count
    assert call("train_det", det_config, "--work-dir", tmp_path, *short) is None
    before = (tmp_path / "last.pth").read_bytes()
    assert read_checkpoint(tmp_path / "last.pth")["meta"]["step"] == 1
    message = mistake("train_det", det_config, "--work-dir", tmp_path, *short)
    assert all(way in message for way in ("--resume", "--work-dir", "--overwrite"))
    assert (tmp_path / "last.pth").read_bytes() == before
    with held(tmp_path):  # as another process would
        assert "going on" in mistake("train_det", det_config, "--work-dir", tmp_path, "--overwrite", *short)
    assert call("train_det", det_config, "--work-dir", tmp_path, "--overwrite", *short) is None


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_configs_are_python(tmp_path, suffix):
    path = tmp_path / f"config.{suffix}"
    path.write_text("task: !!python/object/apply:os.system ['touch ran']")
    assert "a .py file" in mistake("train_det", path)
    assert not (Path.cwd() / "ran").exists()
