from __future__ import annotations

import json

import pytest

from resdet.analysis.curves import Errors, error_panel, read_errors
from resdet.errors import InputError


def write_log(work_dir, start, rows, *, end=""):
    path = work_dir / start / "vis_data" / "scalars.json"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + end)


def test_a_run_and_its_resumed_half(tmp_path):
    """The first start reached step 400 and had saved step 200; the second went on from there."""
    first = [{"error": 0.9, "step": 100}, {"error": 0.8, "step": 200}, {"top1_error": 0.7, "step": 200}]
    first += [
        {"error": 0.99, "step": 300},
        {"top1_error": 0.99, "step": 300},
        {"error": 0.98, "step": 400},
        {"top1_error": 0.97, "step": 400},
    ]
    write_log(tmp_path, "20260102_000000", first)
    second = [{"loss": 1.0, "error": 0.5, "step": 300}, {"error": 0.4, "step": 400}, {"top1_error": 0.3, "step": 400}]
    write_log(tmp_path, "20260103_000000", second, end='{"error": 0.2, "st')  # being written
    errors = read_errors(tmp_path)
    assert errors.train == {100: 0.9, 200: 0.8, 300: 0.5, 400: 0.4}
    assert errors.test == {200: 0.7, 400: 0.3}


def test_a_run_begun_anew_replaces_the_old_one(tmp_path):
    write_log(tmp_path, "20260101_000000", [{"error": 0.1, "step": 50}, {"error": 0.1, "step": 900}])
    write_log(tmp_path, "20260102_000000", [{"error": 0.6, "step": 50}])
    write_log(tmp_path, "20260103_000000", [])  # stopped before its first report
    assert read_errors(tmp_path) == Errors({50: 0.6}, {})


def test_the_figure_has_a_thin_and_a_bold_line_of_one_colour(tmp_path):
    write_log(tmp_path, "1", [{"error": 0.9, "step": 1}, {"error": 0.1, "step": 2}, {"top1_error": 0.2, "step": 2}])
    errors = read_errors(tmp_path)
    panel = error_panel({"plain": errors, "residual": errors._replace(test={})})
    drawn = [(line.name, line.style, line.colour, list(line.x), line.y) for line in panel.lines]
    assert drawn == [
        ("", "dashed", 0, [1, 2], [90.0, 10.0]),
        ("plain", "bold", 0, [2], [20.0]),
        ("residual", "dashed", 1, [1, 2], [90.0, 10.0]),
        ("", "bold", 1, [], []),
    ]
    assert panel.top == 60  # three times the greatest final error, 20 %


def test_errors(tmp_path):
    with pytest.raises(InputError, match=r"(?s)run .*no \*/vis_data/scalars.json.*work dir of tools/train_cls.py"):
        read_errors(tmp_path)
    write_log(tmp_path, "1", [{"loss": 0.9, "step": 1}])
    with pytest.raises(InputError, match="1 logs without an error"):
        read_errors(tmp_path)
    write_log(tmp_path, "2", [], end='oops\n{"error": 0.1, "step": 1}\n')
    with pytest.raises(InputError, match=r"(?s)scalars.json, line 1.*oops.*a JSON object"):
        read_errors(tmp_path)


def test_several_seeds_are_a_mean_and_a_band(tmp_path):
    for seed, error in ((0, 0.4), (1, 0.6)):
        folder = tmp_path / f"seed{seed}" / "20260101" / "vis_data"
        folder.mkdir(parents=True)
        rows = [{"error": error, "step": 10}, {"top1_error": error / 2, "step": 10}]
        rows += [{"error": 0.1, "step": 20}] * (seed == 0)  # which the second seed has not reached
        (folder / "scalars.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    errors = read_errors(tmp_path)
    assert errors.train == {10: pytest.approx(0.5)} and errors.test == {10: pytest.approx(0.25)}
    assert errors.train_spread == {10: pytest.approx(0.1 * 2**0.5)}  # of 0.4 and 0.6
    assert errors.test_spread == {10: pytest.approx(0.05 * 2**0.5)}
    dashed, bold = error_panel({"net": errors}).lines
    assert dashed.spread == [pytest.approx(10 * 2**0.5)] and bold.name == "net"
