"""The table of runs, from records written here by hand, and what two runs differ in."""

from __future__ import annotations

import json
import shutil

import pytest

from resdet import cli
from resdet.errors import InputError
from resdet.files import held
from resdet.inspection.runs import by_score, differences, differences_table, find_runs, read_run, table

FIRST = {
    "task": "detection",
    "config": {"path": "configs/small.py", "text": "task = 'detection'"},
    "overrides": ["optimizer.lr=0.1"],
    "settings": {"optimizer.lr": 0.1, "schedule.length": 12.0, "augmentation": ["flip"]},
    "score": "coco/AP",
    "seed": 0,
    "commit": "0123456789abcdef",
    "versions": {"torch": "2.6.0", "numpy": "2.1"},
    "machine": {"cpu": "some", "gpu": None},
    "processes": 1,
    "steps": 100,
    "began": "2026-01-02T10:00:00+00:00",
    "seconds": 3725.0,
    "step": 100,
    "best": 0.25,
    "best_step": 80,
    "figures": {"coco/AP": 0.24, "coco/AP50": 0.5},
    "finished": True,
}


@pytest.fixture
def work_dirs(tmp_path):
    """The first run, a better one that was stopped, one without a validation yet, and two folders that are none."""

    def write(name, **changes):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "run.json").write_text(json.dumps({**FIRST, **changes}))

    write("a")
    write(
        "deep/b",
        began="2026-01-01T10:00:00+00:00",
        overrides=[],
        settings={**FIRST["settings"], "optimizer.lr": 0.2},
        seed=1,
        commit="fedcba9876543210+",
        best=0.5,
        step=40,
        finished=False,
        figures={"coco/AP": 0.5, "coco/AP50": 0.75},
    )
    write("new", began="2026-01-03T10:00:00+00:00", step=0, best=None, best_step=None, figures={}, finished=False)
    for name, file, text in (("broken", "run.json", "{"), ("foreign", "last.pth", "of another program")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(text)
    (tmp_path / "pictures").mkdir()
    return tmp_path


def test_all_runs_by_time(work_dirs):
    runs, others = find_runs(work_dirs)
    assert [run.folder for run in runs] == [str(work_dirs / name) for name in ("deep/b", "a", "new")]
    assert [(run.state, run.step) for run in runs] == [("stopped", 40), ("finished", 100), ("stopped", 0)]
    assert [other.folder for other in others] == [str(work_dirs / name) for name in ("broken", "foreign")]
    assert "no JSON" in others[0].why
    first = runs[1]
    assert (first.config, first.best, first.best_step, first.commit) == ("small", 0.25, 80, "0123456789abcdef")


def test_a_run_that_is_going_on(work_dirs):
    with held(work_dirs / "new"):  # as a training does
        assert read_run(work_dirs / "new").state == "running"
    assert read_run(work_dirs / "new").state == "stopped"


def test_the_best_first(work_dirs):
    runs, _ = find_runs(work_dirs)
    other = runs[0]._replace(folder="classifier", score="top1", best=0.9)
    ordered = by_score([*runs, other])
    assert [run.best for run in ordered] == [0.5, 0.25, 0.9, None]  # of one metric together


def test_the_table(work_dirs):
    lines = table(*find_runs(work_dirs), root=work_dirs).splitlines()
    assert " ".join(lines[0].split()) == "began (UTC) run config best state seed commit time overrides"
    cells = [" ".join(line.split()) for line in lines]
    assert (
        cells[1]
        == "2026-01-01 10:00 deep/b small coco/AP 0.5000 at step 80 stopped at step 40 of 100 1 fedcba98+ 1:02:05 -"
    )
    assert cells[2] == (
        "2026-01-02 10:00 a small coco/AP 0.2500 at step 80 finished 0 01234567 1:02:05 optimizer.lr=0.1"
    )
    assert cells[3].startswith("2026-01-03 10:00 new small - stopped at step 0 of 100")
    assert cells[4].startswith("passed over: 2 folders") and "broken" in cells[4]


def test_what_two_runs_differ_in(work_dirs):
    a, b = (read_run(work_dirs / name) for name in ("a", "deep/b"))
    assert differences(a, a) == {}
    assert "do not differ" in differences_table(a, a)
    assert differences(a, b) == {
        "optimizer.lr": (0.1, 0.2),
        "overrides": (("optimizer.lr=0.1",), ()),
        "seed": (0, 1),
        "commit": ("0123456789abcdef", "fedcba9876543210+"),
        "state": ("finished", "stopped"),
        "step": (100, 40),
        "best": (0.25, 0.5),
        "figures.coco/AP": (0.24, 0.5),
        "figures.coco/AP50": (0.5, 0.75),
    }
    lines = [line.split() for line in differences_table(a, b).splitlines()]
    assert ["best", "0.25", "0.5", "+0.2500"] in lines
    assert ["overrides", "optimizer.lr=0.1", "-"] in lines


def test_other_versions_and_settings_that_one_alone_has(work_dirs):
    a = read_run(work_dirs / "a")
    b = a._replace(versions={"torch": "2.7.0", "numpy": "2.1"}, settings={**a.settings, "run.new": True})
    assert differences(a, b) == {"run.new": (None, True), "versions.torch": ("2.6.0", "2.7.0")}
    assert differences(a, b._replace(partial=True)) == {"versions.torch": ("2.6.0", "2.7.0")}


def test_a_run_of_a_version_without_records(trained, tmp_path):
    for name in ("last.pth", "metrics.json", "tiny_det.py"):
        shutil.copy(trained / name, tmp_path / name)
    (tmp_path / "20260102_030405").mkdir()
    old, new = read_run(tmp_path), read_run(trained)
    assert (old.config, old.score, old.best, old.seed) == (new.config, new.score, new.best, new.seed)
    assert (old.step, old.state, old.commit, old.seconds) == (6, "finished", None, None)
    assert old.began is not None and old.began[:4] == "2026"
    assert differences(old, new) == {}  # all that the checkpoint tells is the same
    assert differences(old, new._replace(seed=7)) == {"seed": (0, 7)}
    (tmp_path / "metrics.json").unlink()
    assert read_run(tmp_path).state == "stopped"


def test_no_folder_and_no_run(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        find_runs(tmp_path / "none")
    assert find_runs(tmp_path) == ([], [])
    with pytest.raises(InputError, match=r"neither run\.json nor a checkpoint"):
        read_run(tmp_path)


# --- the tool


def call(*words):
    try:
        cli.runs([str(word) for word in words])
    except SystemExit as error:
        return error.code
    return None


def test_the_tool(work_dirs, tmp_path, capsys):
    out = tmp_path / "runs.json"
    assert call(work_dirs, "--sort", "metric", "--json", out) is None
    assert capsys.readouterr().out.splitlines()[1].split()[2] == "deep/b"
    record = json.loads(out.read_text())
    assert [run["best"] for run in record["runs"]] == [0.5, 0.25, None]
    assert len(record["passed_over"]) == 2
    assert call(work_dirs, "--diff", "a", work_dirs / "deep" / "b", "--json", out) is None
    assert "optimizer.lr" in capsys.readouterr().out
    assert json.loads(out.read_text())["differences"]["seed"] == [0, 1]


def test_mistakes_of_the_tool(work_dirs, tmp_path):
    assert "no such folder" in call(tmp_path / "none")
    assert "no run" in call(work_dirs / "pictures")
    assert "1 folders that cannot be read" in call(work_dirs / "broken")
    assert "neither run.json nor a checkpoint" in call(work_dirs, "--diff", "a", "c")
    assert call(work_dirs, "--diff", "a", "new", "--sort", "metric") == 2
