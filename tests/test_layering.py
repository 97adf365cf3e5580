"""A file imports only from its own layer or from lower ones, and no two files import each other in a circle."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "resdet"
LAYERS = (
    ("errors", "files", "settings", "structures", "boxes", "labels", "memory", "cpu"),
    ("backbones", "visualize"),
    ("datasets", "evaluation"),
    ("detection", "classification"),
    ("localization", "inference", "analysis"),
    ("engine",),
    ("api", "cli", "demo", "demo_localization", "benchmarks", "ladder", "costs", "conversion", "steps", "analyze"),
)
LAYER = {name: layer for layer, names in enumerate(LAYERS) for name in names}
MAY_IMPORT_MMENGINE = ("engine", "api", "cli", "demo_localization", "benchmarks", "ladder", "costs", "conversion")


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
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


FILES = {".".join(("resdet", *p.relative_to(PACKAGE).with_suffix("").parts)): p for p in sorted(PACKAGE.rglob("*.py"))}
GRAPH = {name: imports(path) & (FILES.keys() - {"resdet"}) for name, path in FILES.items()}


def unit(module: str) -> str:
    return module.split(".")[1]


def test_every_file_has_a_layer():
    assert {unit(name) for name in FILES} - LAYER.keys() == {"__init__"}


def test_imports_point_down():
    pairs = [(a, b) for a, used in GRAPH.items() for b in used if unit(a) != "__init__"]
    assert len(pairs) > 50  # the graph is not empty
    assert [f"{a} imports {b}" for a, b in pairs if LAYER[unit(a)] < LAYER[unit(b)]] == []


def test_no_cycles():
    list(TopologicalSorter(GRAPH).static_order())  # raises CycleError, which names the files


def test_only_the_engine_knows_mmengine():
    users = {name for name, path in FILES.items() if any(i.split(".")[0] == "mmengine" for i in imports(path))}
    assert "resdet.engine.runner" in users
    assert [name for name in users if unit(name) not in MAY_IMPORT_MMENGINE] == []
