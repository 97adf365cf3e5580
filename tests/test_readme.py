"""README and manual name only things that exist, and their commands parse."""

import re
import shlex
from pathlib import Path

import pytest

from resdet.engine.config import SETTINGS
from resdet.engine.tasks import OWN_SECTIONS, task_named

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {path: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
MANUAL = "\n".join(PAGES.values())
FENCED = re.findall(r"^```([^\n]*)\n(.*?)^```", MANUAL, flags=re.S | re.M)
BLOCKS = [text for language, text in FENCED if not language]
COMMANDS = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_tool_config_and_link_exists(page):
    text = PAGES[page]
    for path in set(re.findall(r"\b(?:tools|configs|resdet|tests)/[\w/]+\.py", text)) - {
        "configs/mine.py"
    }:  # the reader's own
        assert (ROOT / path).exists(), path
    for path in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / path).exists(), path
    for name in re.findall(r"^\| `(\w+)` \|", text, flags=re.M):
        assert page.name == "design.md" or (ROOT / "configs" / f"{name}.py").exists(), name


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 200
    assert "@@" not in MANUAL


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (\w+)  ", MANUAL):
        assert re.search(rf"^{target}:", makefile, flags=re.M), target


def test_ci_runs_the_test_command():
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    assert "make test" in README


def test_every_setting_it_names_exists():
    named = re.findall(r"\b(loader|optimizer|schedule|run|publish|test)\.(?!py\b|json\b)(\w+)", MANUAL)
    assert named
    for section, key in named:
        kinds = [task_named(name).test_settings for name in OWN_SECTIONS] if section == "test" else [SETTINGS[section]]
        assert any(key in kind.model_fields for kind in kinds), f"{section}.{key}"


@pytest.mark.parametrize("line", [line for line in COMMANDS if "tools/" in line])
def test_commands_use_flags_that_the_tools_have(line, capsys):
    from resdet import cli

    words = shlex.split(line, comments=True)
    tool = next(word for word in words if word.startswith("tools/"))
    call = {
        "tools/train_det.py": lambda: cli.train("detection", "", ["-h"]),
        "tools/train_cls.py": lambda: cli.train("classification", "", ["-h"]),
        "tools/train_loc.py": lambda: cli.train("localization", "", ["-h"]),
        "tools/eval.py": lambda: cli.evaluate(["-h"]),
        "tools/export.py": lambda: cli.export(["-h"]),
        "tools/infer.py": lambda: cli.infer(["-h"]),
        "tools/benchmark.py": lambda: cli.benchmark(["-h"]),
        "tools/publish.py": lambda: cli.publish(["-h"]),
        "tools/check_data.py": lambda: cli.check_data(["-h"]),
        "tools/browse.py": lambda: cli.browse(["-h"]),
        "tools/runs.py": lambda: cli.runs(["-h"]),
        "tools/report.py": lambda: cli.report(["-h"]),
        "tools/ladder.py": lambda: cli.ladder(["-h"]),
        "tools/serve.py": lambda: cli.serve(["-h"]),
        "tools/download.py": lambda: cli.download(["-h"]),
        "tools/convert.py": lambda: cli.convert(["-h"]),
        "tools/show_steps.py": lambda: cli.show_steps(["-h"]),
        "tools/analyze_cls.py": lambda: cli.analyze(["curves", "-h"]),
    }[tool]
    with pytest.raises(SystemExit, match="0"):
        call()
    known = capsys.readouterr().out
    for flag in (word for word in words[words.index(tool) :] if word.startswith("--")):
        assert re.search(rf"{flag}\b", known), f"{tool} {flag}"


def test_every_setting_is_documented():
    kinds = {*SETTINGS.values(), *(task_named(name).test_settings for name in OWN_SECTIONS)}
    assert len(kinds) > 8
    assert [kind.__name__ for kind in kinds if not kind.__doc__] == []
