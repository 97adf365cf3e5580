"""The benchmark compares like with like and adds up right. No time is asserted."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from resdet import cli
from resdet.analysis import tables
from resdet.backbones.blocks import BasicBlock
from resdet.benchmarks import timing
from resdet.benchmarks.clock import in_turns
from resdet.benchmarks.footprint import Memory
from resdet.benchmarks.jobs import Job
from resdet.benchmarks.stations import STATIONS
from resdet.benchmarks.timing import Measured, Row, Side, agreement, side_job
from resdet.cpu.winograd import is_marked

SIDE = Side(True, "torchvision", "r50_fpn", "infer", (64, 96), 1, keep_memory=False, threads=1)


def test_in_turns_goes_forth_and_back():
    called = []

    def tells(name):
        return lambda: called.append(name) or len(called)

    assert in_turns(tells("a"), tells("b"), runs=3) == [[1, 4, 5], [2, 3, 6]]
    assert called == list("abbaab")
    assert in_turns(tells("a"), runs=0) == [[]]


class Scripted:
    """Stands for the two workers: seconds 9 untimed, then 1, 3, 9 of ours and 2, 4, 6 of theirs, 2 images a step."""

    def __init__(self, job, side, threads):
        assert job is side_job and threads == 1 and side.work == "train"
        self.seconds = iter([9.0, 1.0, 3.0, 9.0] if side.ours else [9.0, 2.0, 4.0, 6.0])
        self.peaks = iter([5e9, 10e9])
        self.ours = side.ours

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def built(self):
        return self

    def ask(self, method, *arguments):
        if method == "profile":
            return {"backbone": next(self.steps), "rest": 0.5}
        if method == "memory":
            self.steps = iter([1.0, 5.0, 2.0])
            return Memory(1.0, 2.0 if self.ours else 3.0)
        scripts = {"run": self.seconds, "peak": self.peaks}
        return next(scripts[method]) if method in scripts else {"answer": 2.5, "flops": 20_000_000_000}[method]


def test_medians_ratios_and_shares(monkeypatch):
    monkeypatch.setattr(timing, "Worker", Scripted)
    row = timing.compare(SIDE._replace(work="train", batch_size=2), runs=3, profile=True)
    # Pairs in turn: 1/2, 3/4, 9/6. Medians 3 and 4. 20 GFLOP in 3 s of a peak of 10 GFLOP/s (the better of 5 and 10).
    assert (row.ours.seconds, row.theirs.seconds, row.ratio, row.ratios) == (3.0, 4.0, 0.75, (0.5, 1.5))
    assert (row.ours.of_peak, row.theirs.of_peak) == pytest.approx((20 / 3 / 10, 20 / 4 / 10))
    assert (row.ours.images_per_second, row.ours.first_seconds) == pytest.approx((2 / 3, 9.0))
    assert (row.ours.memory.peak, row.theirs.memory.peak, row.ours.loss, row.same) == (2.0, 3.0, 2.5, None)
    assert row.ours.profile == {"backbone": 2.0, "rest": 0.5}
    line = tables.line(row, timing.COLUMNS)
    assert [cell.strip() for cell in line.split("|")[1:-1]] == [
        *("train 2 x 64x96", "r50_fpn", "3.000", "torchvision", "4.000"),
        *("0.75", "2.00", "3.00", "67%", "50%", "-"),
    ]
    heads = tables.head(timing.COLUMNS).splitlines()
    assert {len(each) for each in (*heads, line)} == {len(line)}  # one width
    assert "| backbone | 2.0000 s   80% | 2.0000 s   80% |" in timing.profile_table(row)


def found(boxes, scores, labels):
    return tuple(np.array(part, dtype=np.float32) for part in (boxes, scores, labels))


def test_agreement():
    theirs = found([[0, 0, 10, 10], [20, 20, 40, 40], [0, 0, 10, 10]], [0.9, 0.8, 0.7], [1, 2, 3])
    # The first moved by 0.5: IoU 95/105 > 0.9; the second of another class; the third with a score 0.1 lower.
    ours = found([[0, 0.5, 10, 10.5], [20, 20, 40, 40], [0, 0, 10, 10]], [0.9, 0.8, 0.6], [1, 1, 3])
    assert agreement([ours], [theirs]) == pytest.approx(1 / 3)
    assert agreement([theirs, ours], [theirs, ours]) == 1
    nothing = found(np.zeros((0, 4)), [], [])
    assert agreement([nothing], [theirs]) == 0
    assert agreement([theirs], [nothing]) is None


def test_flops_are_those_of_the_layers():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(8 * 20, 6))
    job = Job(net, lambda: net(torch.ones(2, 3, 4, 5)))
    # 2 images, 20 places, 8 x 27 products and as many sums, then 160 x 6.
    with torch.no_grad():
        assert job.flops() == 2 * (2 * 20 * 8 * 27 + 2 * 160 * 6)
    assert job.peak("off") > 1e8


def test_the_other_side_runs_as_shipped(monkeypatch):
    told = []
    frame = SimpleNamespace(detect=None, losses=None, twin=lambda net, name, hw: net)
    monkeypatch.setattr(timing, "framework", lambda name: frame)
    monkeypatch.setattr(timing, "build_theirs", lambda *_: torch.nn.Conv2d(3, 2, 3))
    monkeypatch.setattr(timing, "ready_for_inference", lambda net, *, winograd: told.append(winograd) or net)
    monkeypatch.setattr(timing, "keep_freed_memory", lambda: told.append("kept"))
    monkeypatch.setattr(timing, "compile_parts", lambda net, mode: told.append(mode))
    side = SIDE._replace(keep_memory=True, winograd=True, compile="default")
    ours, theirs = side_job(side), side_job(side._replace(ours=False))
    assert told == [True, "default", "kept"]
    last = [job.net.weight.is_contiguous(memory_format=torch.channels_last) for job in (ours, theirs)]
    assert last == [True, torch.cuda.is_available()]
    side_job(side._replace(keep_memory=False, winograd=False))
    assert told == [True, "default", "kept", False, "default"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="Winograd in training is of a CPU")
def test_winograd_in_training_is_ours_alone(monkeypatch):
    frame = SimpleNamespace(losses=None, twin=lambda net, name, hw: net)
    monkeypatch.setattr(timing, "framework", lambda name: frame)
    monkeypatch.setattr(timing, "build_theirs", lambda *_: BasicBlock(128, 128))
    side = SIDE._replace(work="train", winograd=True)
    jobs = [side_job(each) for each in (side, side._replace(ours=False), side._replace(winograd=False))]
    assert [is_marked(job.net.conv2) for job in jobs] == [True, False, False]


def test_the_tool_measures_both_sides_and_writes_them_down(tmp_path, capsys):
    out = tmp_path / "speed.json"
    words = ["infer", "train", "--sizes", "64x96", "--runs", "1", "--threads", "1", "--batch-size", "1", "--profile"]
    cli.benchmark([*words, "--out", str(out)])
    printed = capsys.readouterr().out
    rows = json.loads(out.read_text())["rows"]
    assert [row["side"]["work"] for row in rows] == ["infer", "train"]
    assert printed.startswith(tables.head(timing.COLUMNS)) and printed.count("| r50_fpn |") == 4
    for row in rows:
        assert row["side"]["keep_memory"] is True and row["side"]["hw"] == [64, 96]
        assert row["flops"] > 1e9 and row["peak_flops"] > 1e8 and row["ratio"] == row["ratios"][0] == row["ratios"][1]
        for kind in ("ours", "theirs"):
            told = row[kind]
            assert min(told["seconds"], told["first_seconds"], told["images_per_second"], told["of_peak"]) > 0
            assert told["memory"]["peak"] > 0.1
            stations = set(STATIONS[:6]) | (
                {"backward", "optimizer"} if row["side"]["work"] == "train" else {"suppress"}
            )
            assert set(told["profile"]) == stations | {"rest"}
            assert all(seconds > 0 for seconds in told["profile"].values())
    inference, training = rows
    assert inference["same"] > 0.95  # torchvision infers the stride of P6 a little wrong at this size
    assert training["same"] is None and training["ours"]["loss"] == pytest.approx(training["theirs"]["loss"], rel=0.3)
    assert training["flops"] > 2 * inference["flops"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["infer", "--sizes", "800"], r"error: --sizes\n  found:  '800'\n  needed: HEIGHTxWIDTH"),
        (["infer", "--sizes", "8x8"], "32 or more"),
        (["cls"], r"--configs\n  found:  none"),
    ],
)
def test_mistakes_are_told(words, message):
    with pytest.raises(SystemExit, match=message):
        cli.benchmark(words)


@pytest.mark.parametrize(
    "words",
    [
        ["infer", "--runs", "0"],
        ["infer", "--batch-size", "-1"],
        ["infer", "--nets", "r18"],
        ["train", "--winograd", "--amp", "bf16"],
        ["train", "--winograd", "--compile", "default"],
    ],
)
def test_arguments_that_cannot_be(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.benchmark(words)
    assert words[1] in capsys.readouterr().err


def test_a_row_without_stations_has_no_table():
    measured = Measured(1.0, 1.0, 1.0, Memory(0.0, 1.0), 0.5, None, {})
    row = Row(SIDE, measured, measured, 1.0, (1.0, 1.0), 1.0, 1, 1.0, 1)
    assert len(timing.profile_table(row).splitlines()) == 2
