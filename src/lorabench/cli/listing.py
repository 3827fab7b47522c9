"""Lists of alike things, as a table for people or as JSON, Markdown or CSV for what reads them next."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

FORMATS = ("table", "json", "markdown", "csv")


class Column(NamedTuple):
    """One column of a table."""

    title: str
    cells: Sequence[str]
    """One for each row; empty where there is nothing to say."""
    right: bool = True
    """Whether it holds numbers, which line up on the right."""


def as_table(columns: Sequence[Column]) -> str:
    """Return lines with the columns side by side, none cut: only a terminal that is too narrow folds the first."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    on_terminal = sys.stdout.isatty()
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold" if on_terminal else "")
    for index, column in enumerate(columns):
        table.add_column(column.title, justify="right" if column.right else "left", overflow="fold", no_wrap=index > 0)
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*map(Text, row))
    widest = sum(max(map(len, (column.title, *column.cells))) + 1 for column in columns)
    console = Console(width=None if on_terminal else widest, highlight=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def as_markdown(columns: Sequence[Column]) -> str:
    """Return a Markdown table."""
    lines = [
        [column.title for column in columns],
        ["---:" if column.right else "---" for column in columns],
        *zip(*(column.cells for column in columns), strict=True),
    ]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Return comma-separated values with a header; what is missing is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")


def as_json(rows: Sequence[dict[str, Any]]) -> str:
    """Return a JSON list of objects."""
    import msgspec

    return msgspec.json.format(msgspec.json.encode(rows), indent=2).decode()
