"""The house: what may import what, how large each room is, and how far a walk through it goes.

``python tests/test_house.py`` prints the table of rooms and lines.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "resdet"
FOUNDATION = ("version", "errors", "files", "unpickle", "settings", "structures", "boxes", "labels")
CORE = (
    "cpu",
    "backbones",
    "datasets",
    "evaluation",
    "detection",
    "inference",
    "classification",
    "localization",
    "engine",
    "api",
)
WINGS = ("convert", "analysis", "inspection", "deploy", "benchmarks", "studies", "cli")
ORDER = {name: place for place, name in enumerate((*FOUNDATION, *CORE, *WINGS))}
"""A room imports from itself and from the rooms before it."""
TOTAL_LINES = 33_500
"""Of everything, docstrings included; it only goes down."""
FILE_LINES, FUNCTION_LINES, PARAMETERS = 300, 60, 7
LONG_FILES, LONG_FUNCTIONS, WIDE_FUNCTIONS = 0, 0, 11
"""How many pass those bounds today; they only go down."""
API_FILES = 105
"""Files of ours that ``from resdet.api import Detector`` loads at most."""


def imports(path: Path) -> set[str]:
    """Dotted names of the modules that a file imports, wherever in it; not those for type checkers alone."""
    tree, names = ast.parse(path.read_text()), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {node.module} - {"resdet"}  # of which a module is taken, or a name, which is none
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            assert not any("resdet" in ast.unparse(argument) for argument in node.args), f"{path}: import_module"
    return names


FILES = {".".join(("resdet", *p.relative_to(PACKAGE).with_suffix("").parts)): p for p in sorted(PACKAGE.rglob("*.py"))}
IMPORTS = {name: imports(path) for name, path in FILES.items()}
PACKAGES = {name.removesuffix(".__init__"): name for name in FILES if name.endswith(".__init__")}


def used(module: str) -> set[str]:
    """Our files that a file needs; a room's own ``__init__`` only where another room asks."""
    own = ".".join(module.split(".")[:2])
    inits = {PACKAGES[name] for name in IMPORTS[module] if name in PACKAGES and not name.startswith(own)}
    return (IMPORTS[module] & FILES.keys()) | inits - {"resdet.__init__"}


GRAPH = {name: used(name) for name in FILES}


def room(module: str) -> str:
    return module.split(".")[1]


def functions():
    for name, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                yield f"{name}.{node.name}", node


def table() -> str:
    lines, files = Counter(), Counter()
    for name, path in FILES.items():
        lines[room(name)] += len(path.read_text().splitlines())
        files[room(name)] += 1
    rows = [f"{name:<16}{files[name]:>4} files{lines[name]:>7} lines" for name in ORDER]
    core = sum(lines[name] for name in (*FOUNDATION, *CORE))
    return "\n".join([*rows, f"core {core}, wings {sum(lines[n] for n in WINGS)}, all {sum(lines.values())} lines"])


def test_every_file_has_a_room():
    assert {room(name) for name in FILES} - ORDER.keys() == {"__init__"}


def test_imports_point_down():
    pairs = [(a, b) for a, used in GRAPH.items() for b in used if room(a) != "__init__" and room(b) != "__init__"]
    assert len(pairs) > 50  # the graph is not empty
    assert sorted(f"{a} imports {b}" for a, b in pairs if ORDER[room(a)] < ORDER[room(b)]) == []


def test_no_cycles():
    list(TopologicalSorter(GRAPH).static_order())  # raises CycleError, which names the files


def test_nobody_imports_the_root():
    known = {part for name in FILES for part in (name, name.rpartition(".")[0])} - {"resdet"}
    of_root = {a: {n for n in names if n == "resdet" or n.startswith("resdet.")} for a, names in IMPORTS.items()}
    users = {a: n for a, names in of_root.items() for n in names if n.count(".") < 2 and n not in known}
    assert {a: n for a, n in users.items() if a != "resdet.__init__"} == {}


def test_only_the_engine_knows_mmengine():
    users = {name for name, names in IMPORTS.items() if any(i.split(".")[0] == "mmengine" for i in names)}
    assert "resdet.engine.runner" in users
    assert sorted(name for name in users if room(name) != "engine") == []


def test_sizes():
    print(table())
    assert sum(len(path.read_text().splitlines()) for path in FILES.values()) <= TOTAL_LINES
    long = {name: n for name, path in FILES.items() if (n := len(path.read_text().splitlines())) > FILE_LINES}
    assert len(long) <= LONG_FILES, long
    tall = {name: n for name, f in functions() if (n := f.end_lineno - f.lineno + 1) > FUNCTION_LINES}
    assert len(tall) <= LONG_FUNCTIONS, tall
    wide = {
        n: k for n, f in functions() if (k := len([*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs])) > PARAMETERS
    }
    assert len(wide) <= WIDE_FUNCTIONS, wide


def test_the_api_is_light():
    code = "import sys; from resdet.api import Detector; "
    code += "print(*sorted(m for m in sys.modules if m.split('.')[0] == 'resdet'))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert len(loaded) <= API_FILES, loaded
    assert not [name for name in loaded if name != "resdet" and room(name) in WINGS]


def test_the_wheel_has_every_package():
    packages = set(
        re.findall(r'^    "(resdet[\w.]*)",$', (PACKAGE.parent / "pyproject.toml").read_text(), re.MULTILINE)
    )
    assert packages == {*PACKAGES, "resdet.configs", "resdet.configs._base_"}


if __name__ == "__main__":
    print(table())
