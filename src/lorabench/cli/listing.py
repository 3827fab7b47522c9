"""Lists of alike things, as a table for people or as JSON, Markdown or CSV for what reads them next."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

FORMATS = ("table", "json", "markdown", "csv")

WIDTH = 80
"""Columns of the terminal that what people read is wrapped for."""


class Column(NamedTuple):
    """One column of a table."""

    title: str
    cells: Sequence[str]
    """One for each row; empty where there is nothing to say."""
    right: bool = True
    """Whether it holds numbers, which line up on the right."""


def folded(text: str, width: int = WIDTH, *, indent: str = "", hanging: str = "") -> list[str]:
    """Return ``text`` in lines of ``width``, ``hanging`` before all but the first; names and paths stay whole."""
    return textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=hanging, break_long_words=False, break_on_hyphens=False
    )


def as_table(columns: Sequence[Column]) -> str:
    """Return lines with the columns side by side, none cut, whatever the width of the terminal."""
    padded = []
    for column in columns:
        width = max(map(len, (column.title, *column.cells)))
        pad = str.rjust if column.right else str.ljust
        padded.append([pad(cell, width) for cell in (column.title, *column.cells)])
    return "\n".join(" ".join(line).rstrip() for line in zip(*padded, strict=True))


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
    import csv
    import io

    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")


def as_json(answer: object) -> str:
    """Return indented JSON of a struct, or of lists and objects of them."""
    import msgspec

    return msgspec.json.format(msgspec.json.encode(answer), indent=2).decode()
