"""Points, axes and what is concluded from them; one point is measured, and no time is asserted."""

import json

import pytest

from resdet import cli
from resdet.benchmarks import growth
from resdet.benchmarks.growth import AXES, Cost, Point, axis_costs, check, measure, points


def invented(extra=lambda point: 0.0):
    """Memory of 0.1 GiB, 1 more for 10^6 pixels of the batch, 1 for 10^6 (region, class) pairs, and what is added."""

    def memory(p):
        return 0.1 + p.batch * p.side**2 / 1e6 + p.proposals * p.classes / 1e6 + extra(p)

    return [Cost(p, work, 10.0 / p.batch, memory(p)) for p in points() for work in growth.WORKS]


def test_points_vary_one_thing_at_a_time():
    base = Point()
    found = points()
    assert len(found) == len(set(found)) == sum(map(len, AXES.values())) - len(AXES) + 1 + 2
    for axis, values in AXES.items():
        assert getattr(base, axis) in values
        assert [getattr(cost.point, axis) for cost in axis_costs(invented(), axis, "train")] == list(values)
    assert {(p.side, p.classes) for p in found if p.side == 2 * base.side} == {(384, 80), (384, 20), (384, 1203)}


def test_what_is_linear_passes():
    lines = check(invented())
    assert len(lines) == 2 * 5  # four axes of three or more points, and the classes with more anchors
    assert all(line.endswith(("at most linear", "not with them")) for line in lines)
    # 192 to 384 pixels a side: 0.110592 GiB, and so much for each pixel between 128 and 192.
    assert "train, side 192 to 384: +0.111 GiB, linear +0.111 GiB: at most linear" in lines


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (lambda p: (p.side / 192) ** 4, "side"),
        (lambda p: (p.proposals / 250) ** 2, "proposals"),
        (lambda p: p.batch**2, "batch"),
        (lambda p: p.proposals * p.classes**2 / 2e8, "classes"),
        (lambda p: p.side**2 * p.classes / 1e8, "20 to 1203 classes"),
    ],
)
def test_what_is_not_linear_is_told(extra, words):
    told = [line for line in check(invented(extra)) if "MORE" in line or "GROWS" in line]
    assert told and all(words in line for line in told)


def test_check_of_nothing():
    assert check([]) == []


def test_one_point_in_two_processes():
    cost = measure(Point(side=64, proposals=20, classes=3, processes=2), "train", runs=1)
    assert cost.images_per_second > 0 and cost.memory > 0.05  # gradients and momentum of the net, twice


def test_the_tool_writes_figures_and_pictures(tmp_path, capsys, monkeypatch):
    known = {(cost.point, cost.work): cost for cost in invented()}
    monkeypatch.setattr(growth, "measure", lambda point, work, *, runs, threads: known[point, work])
    cli.benchmark(["growth", "--runs", "1", "--out", str(tmp_path / "growth.json")])
    (row,) = json.loads((tmp_path / "growth.json").read_text())["rows"]
    assert len(row["costs"]) == len(known) and len(row["verdicts"]) == 10
    assert row["costs"][0]["point"] == Point(side=128)._asdict()
    for name in ("growth_speed.png", "growth_memory.png"):
        assert (tmp_path / name).stat().st_size > 1000
    assert "at most linear" in capsys.readouterr().out
