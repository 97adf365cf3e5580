"""The tables of He et al. 2016, "Identity mappings in deep residual networks", beside one's own runs.

Table 1 varies the shortcuts of ResNet-110, Table 2 where BN and ReLU stand, on CIFAR-10. The errors of the paper are of
the test images in percent, medians of five runs; None: it failed (above 20%).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from resdet.analysis.tables import markdown


class Variant(NamedTuple):
    """A row of a table."""

    name: str
    shortcut: str
    gate_bias: float | None = None
    order: str = "post"
    paper: float | None = None


TABLE_1 = (
    Variant("original (identity)", "A", paper=6.61),
    Variant("constant scaling, shortcut 0.5, F 1", "shortcut-scaling"),
    Variant("constant scaling, both 0.5", "scaling", paper=12.35),
    Variant("exclusive gating, bias -5", "exclusive-gate", -5.0),
    Variant("exclusive gating, bias -6", "exclusive-gate", -6.0, paper=8.70),
    Variant("exclusive gating, bias -7", "exclusive-gate", -7.0, paper=9.81),
    Variant("shortcut-only gating, bias 0", "shortcut-gate", 0.0, paper=12.86),
    Variant("shortcut-only gating, bias -6", "shortcut-gate", -6.0, paper=6.91),
    Variant("1x1 convolution", "C", paper=12.22),
    Variant("dropout 0.5", "dropout"),
)
TABLE_2 = (
    Variant("original", "A", order="post", paper=6.61),
    Variant("BN after addition", "A", order="bn-after-addition", paper=8.17),
    Variant("ReLU before addition", "A", order="relu-before-addition", paper=7.84),
    Variant("ReLU-only pre-activation", "A", order="relu-only-pre", paper=6.71),
    Variant("full pre-activation", "A", order="pre", paper=6.37),
)
TABLES = {"Table 1, shortcuts": TABLE_1, "Table 2, orders": TABLE_2}
USUAL_BIAS = {"exclusive-gate": -6.0, "shortcut-gate": -6.0}


class Result(NamedTuple):
    """What a run measured, in percent."""

    net: Mapping[str, Any]
    """Its description: shortcut, gate_bias, order."""
    error: float
    spread: float | None = None
    """Standard deviation over seeds."""


def table(rows: Sequence[Variant], results: Sequence[Result]) -> list[dict[str, Any]]:
    """The paper's rows with the runs that are of them; further runs of one row follow each other."""
    lines: list[dict[str, Any]] = []
    for row in rows:
        found = [result for result in results if _is(row, result.net)] or [None]
        for result in found:
            ours = {} if result is None else {"ours": result.error, "spread": result.spread}
            lines.append({"name": row.name, "paper": row.paper, **ours})
    return lines


def as_markdown(title: str, lines: Sequence[Mapping[str, Any]]) -> str:
    """The table, the paper's error beside ours."""
    cells = [[title, "paper", "ours"]]
    for line in lines:
        ours = f"{line['ours']:.2f}" if "ours" in line else ""
        ours += f" ± {line['spread']:.2f}" if line.get("spread") is not None else ""
        cells.append([line["name"], "> 20" if line["paper"] is None else f"{line['paper']:.2f}", ours])
    return markdown(cells)


def _is(row: Variant, net: Mapping[str, Any]) -> bool:
    bias = net.get("gate_bias")
    bias = USUAL_BIAS.get(row.shortcut) if bias is None else bias
    same = (net.get("shortcut"), net.get("order", "post")) == (row.shortcut, row.order)
    return same and (row.gate_bias is None or bias == row.gate_bias)
