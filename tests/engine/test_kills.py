"""A few kills; at full size it is ``python tests/kills.py --one 100 --two 20``."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_runs_that_are_killed_at_random_times():
    script = Path(__file__).parents[1] / "kills.py"
    ran = subprocess.run([sys.executable, script, "--one", "2", "--two", "1"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "1 process(es): 2 kills" in ran.stdout and "2 process(es): 1 kills" in ran.stdout
