"""Tables in Markdown, whole or line by line as their rows come."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

Row = TypeVar("Row")


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table with columns as wide as they need to be.

    Args:
        lines: cells of each line, the first line the headings.
    """
    lines = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(_line(cells, widths) for cells in lines)


def head(columns: Mapping[str, str]) -> str:
    """The first lines of a table whose rows come later.

    Args:
        columns: heading, filled up to the width of the column -> format of a row, as ``"{.seconds:.2f}"``.
    """
    return f"{_line(columns, map(len, columns))}\n|{'|'.join('-' * (len(name) + 2) for name in columns)}|"


def line(row: object, columns: Mapping[str, str]) -> str:
    """One row below :func:`head`."""
    return _line([shown.format(row) for shown in columns.values()], map(len, columns))


def stream(rows: Iterable[Row], columns: Mapping[str, str]) -> list[Row]:
    """Print a table, each row as soon as it is there; returns the rows."""
    print(head(columns), flush=True)
    there = []
    for row in rows:
        there.append(row)
        print(line(row, columns), flush=True)
    return there


def _line(cells: Iterable[str], widths: Iterable[int]) -> str:
    return f"| {' | '.join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))} |"
