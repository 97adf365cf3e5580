"""The tables of the studies: which run is which row."""

from __future__ import annotations

from resdet.analysis.studies import TABLE_1, TABLE_2, Result, as_markdown, table
from resdet.backbones.custom import BLOCKS
from resdet.backbones.shortcuts import SHORTCUTS


def test_every_row_can_be_trained():
    assert {row.shortcut for row in (*TABLE_1, *TABLE_2)} <= set(SHORTCUTS)
    assert {row.order for row in (*TABLE_1, *TABLE_2)} == set(BLOCKS)


def test_runs_find_their_rows():
    runs = [
        Result({"shortcut": "exclusive-gate", "gate_bias": None, "order": "post"}, 9.0),  # -6 is the usual bias
        Result({"shortcut": "exclusive-gate", "gate_bias": -7.0, "order": "post"}, 10.0, 0.5),
        Result({"shortcut": "A", "gate_bias": None, "order": "relu-only-pre"}, 7.0),
        Result({"shortcut": "highway", "gate_bias": None, "order": "post"}, 50.0),  # of no row
    ]
    ours = {line["name"]: line["ours"] for line in table(TABLE_1, runs) if "ours" in line}
    assert ours == {"exclusive gating, bias -6": 9.0, "exclusive gating, bias -7": 10.0}
    assert [line["name"] for line in table(TABLE_2, runs) if "ours" in line] == ["ReLU-only pre-activation"]
    text = as_markdown("Table 1", table(TABLE_1, runs))
    assert "| exclusive gating, bias -7           | 9.81  | 10.00 ± 0.50 |" in text
    assert "| dropout 0.5                         | > 20  |              |" in text
    assert len({len(line) for line in text.splitlines()}) == 1
