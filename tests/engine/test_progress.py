from __future__ import annotations

import pytest

from resdet.engine import progress


@pytest.fixture
def at(monkeypatch):
    """``at(times, terminal)``: what the clock will say, and whether there is a terminal."""

    def arm(times, terminal=False):
        told = iter(times)
        monkeypatch.setattr(progress.time, "perf_counter", lambda: next(told))
        monkeypatch.setattr(progress.sys.stdout, "isatty", lambda: terminal, raising=False)

    return arm


def test_lines_where_there_is_no_terminal(at, capsys):
    # 20 s a batch: at 20 s the last line, the start, is too near; at 40 s 2 of 5 are done, and 3 need 60 s.
    at([100, 100, 120, 140, 160, 180])
    assert list(progress.shown("abcde", 5)) == list("abcde")
    lines = ["evaluating: 2 of 5 batches, 0:01:00 left", "evaluating: 4 of 5 batches, 0:00:20 left"]
    assert capsys.readouterr() == ("", "\n".join(lines) + "\n")  # a table in a file stays a table


def test_quick_passes_say_nothing(at, capsys):
    at([0, 0, 1, 2, 3])
    assert list(progress.shown("abc", 3)) == list("abc")
    assert list(progress.shown("", 0)) == []
    assert capsys.readouterr() == ("", "")


def test_lines_for_a_log_and_no_second_bar(at):
    said = []
    at([0, 0, 31])
    assert list(progress.shown("ab", 2, "validating", say=said.append)) == ["a", "b"]
    assert said == ["validating: 1 of 2 batches, 0:00:31 left"]
    at([], terminal=True)
    batches = ["a"]
    assert progress.shown(batches, 1, "validating", say=said.append) is batches


def test_one_process_speaks(at, monkeypatch):
    monkeypatch.setattr(progress.distributed, "rank", lambda: 1)
    batches = ["a"]
    assert progress.shown(batches, 1) is batches


def test_clock():
    assert progress.clock(3725.4) == "1:02:05"
