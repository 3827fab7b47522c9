"""Tables for people, and JSON, Markdown or CSV for programs."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

from lorabench.estimator.foreign_text import printable

FORMATS = ("table", "json", "markdown", "csv")

WIDTH = 80
"""Width in columns for text that people read."""


class Column(NamedTuple):
    """One column of a table."""

    title: str
    cells: Sequence[str]
    """One cell per row; empty if there is nothing to show."""
    right: bool = True
    """Align right, for numbers."""
    folds: bool = False
    """Wrap the cells if the table is too wide for a terminal; at most one column of a table may."""


def folded(text: str, width: int = WIDTH, *, indent: str = "", hanging: str = "") -> list[str]:
    """Wrap ``text`` to ``width``, with ``hanging`` before all lines but the first. Names and paths stay whole."""
    return textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=hanging, break_long_words=False, break_on_hyphens=False
    )


def as_table(columns: Sequence[Column]) -> str:
    """Return the columns side by side, never cut, whatever the width of the terminal."""
    cells = _lines_of_cells(columns)
    lines = [line for row in zip(*cells, strict=True) for line in zip_longest(*row, fillvalue="")]
    padded = []
    for column, texts in zip(columns, zip(*lines, strict=True), strict=True):
        width = max(map(len, texts))
        pad = str.rjust if column.right else str.ljust
        padded.append([pad(text, width) for text in texts])
    return "\n".join(" ".join(line).rstrip() for line in zip(*padded, strict=True))


def _lines_of_cells(columns: Sequence[Column]) -> list[list[list[str]]]:
    """Return the lines of each cell of each column, its title first."""
    texts = [(column.title, *map(_one_line, column.cells)) for column in columns]
    widths = [max(map(len, whole)) for whole in texts]
    excess = max(0, sum(widths) + len(widths) - 1 - WIDTH)
    cells = []
    for column, whole, width in zip(columns, texts, widths, strict=True):
        room = max(1, width - excess) if column.folds else width
        cells.append([[cell] if len(cell) <= room else folded(cell, room, hanging="    ") for cell in whole])
    return cells


def _one_line(cell: str) -> str:
    return cell if cell.isprintable() else printable(cell)


def as_markdown(columns: Sequence[Column]) -> str:
    """Return a Markdown table."""
    lines = [
        [column.title for column in columns],
        ["---:" if column.right else "---" for column in columns],
        *zip(*(map(_one_line, column.cells) for column in columns), strict=True),
    ]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Return comma-separated values with a header; a missing value is empty."""
    import csv
    import io

    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")


def as_json(answer: object) -> str:
    """Return indented JSON of a struct, or of a list or dictionary of structs; recipes as flat settings."""
    import msgspec

    plain = _with_flat_recipes(msgspec.to_builtins(answer))
    text = msgspec.json.format(msgspec.json.encode(plain), indent=2).decode()
    return text if text.isascii() else "".join(map(_in_json, text))


def _in_json(char: str) -> str:
    """Return a character of JSON text, escaped if a terminal might act on it: JSON itself escapes those of ASCII."""
    import json

    return char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1]


def _with_flat_recipes(value: Any) -> Any:
    """Return ``value`` with the settings of each recipe in it as people write them; null if they do not apply."""
    from msgspec import convert

    from lorabench.estimator.recipes.recipe import SETTINGS, Recipe

    if isinstance(value, list | tuple):
        return [_with_flat_recipes(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == set(Recipe.__struct_fields__):
        recipe = convert(value, Recipe)
        return {name: recipe.setting(name) for name in SETTINGS}
    return {key: _with_flat_recipes(item) for key, item in value.items()}
