"""The tests under other processors, threads, Pythons and versions of torch: ``python tests/environments.py``.

It prints a table. Each row has an environment of its own in ``.environments/``, made at its first run (5 GB each), and
takes as long as ``make test``. Rows are chosen by parts of their names: ``python tests/environments.py avx2 3.10``. A
row whose Python is not installed is said to be left out.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
OLD = {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default"}


class Row(NamedTuple):
    """One environment."""

    name: str
    python: str = "python3"
    torch: tuple[str, ...] = ()
    """What pip is asked for; nothing: today's."""
    variables: dict[str, str] = {}  # noqa: RUF012
    threads: int = 1


ROWS = (
    Row("today's torch"),
    Row("today's torch, limited to AVX2", variables=AVX2),
    Row("today's torch, without AVX", variables=OLD),
    Row("today's torch, 2 threads", threads=2),
    Row("today's torch, 4 threads", threads=4),
    Row("torch 2.6, Python 3.10", "python3.10", ("torch==2.6.0", "torchvision==0.21.0")),
    Row("torch 2.6, Python 3.10, limited to AVX2", "python3.10", ("torch==2.6.0", "torchvision==0.21.0"), AVX2),
    Row("today's torch, Python 3.13", "python3.13"),
)


def python_of(row: Row) -> Path:
    """The interpreter of a row's environment, which is made where it is missing."""
    folder = ROOT / ".environments" / re.sub(r"\W+", "-", f"{row.python} {' '.join(row.torch)}").strip("-")
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        subprocess.run([row.python, "-m", "venv", "--clear", str(folder)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*install, *row.torch, "--editable", f"{ROOT}[test]"], check=True)
        subprocess.run([*install, "--force-reinstall", "--no-deps", "opencv-python-headless"], check=True)
        (folder / "installed").touch()
    return python


def run(row: Row) -> str:
    """``N passed, M failed, ...`` of a row, and which failed."""
    if shutil.which(row.python) is None:
        return f"left out: no {row.python}"
    variables = {
        **os.environ,
        **row.variables,
        "OMP_NUM_THREADS": str(row.threads),
        "RESDET_TEST_THREADS": str(row.threads),
        "OMP_WAIT_POLICY": "passive",  # two workers share the CPUs
    }
    command = [str(python_of(row)), "-m", "pytest", "-o", "addopts=", "-q", "-n", "2", "-m", "not slow"]
    lines = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True).stdout.splitlines()
    broken = [f"    {line}" for line in lines if line.startswith(("FAILED", "ERROR"))]
    return "\n".join([lines[-1].strip("= "), *broken]) if lines else "no answer"


if __name__ == "__main__":
    wanted = [word.lower() for word in sys.argv[1:]]
    for row in ROWS:
        if all(word in row.name.lower() for word in wanted):
            print(f"{row.name:<42} {run(row)}", flush=True)
