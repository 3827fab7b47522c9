"""The derivation of an estimate, as text and as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorabench.cli.listing import WIDTH, Column, as_markdown, folded
from lorabench.estimator.quantities import in_gib

if TYPE_CHECKING:
    from lorabench.estimator.explanation import Derivation, Explanation, Line

INDENT = "  "
ROOM = WIDTH - len(INDENT)


def explanation_as_text(explanation: Explanation) -> str:
    """Return the derivation for a terminal: for each term the formula, the numbers, and the source."""
    legend = [f"{symbol.name} = {symbol.value:,}  {symbol.meaning}" for symbol in explanation.symbols]
    return "\n\n".join([_block("Symbols", legend), *map(_section_as_text, explanation.sections)])


def explanation_as_markdown(explanation: Explanation) -> str:
    """Return the derivation as Markdown, one table per section."""
    legend = as_markdown(
        [
            Column("symbol", [symbol.name for symbol in explanation.symbols], right=False),
            Column("value", [f"{symbol.value:,}" for symbol in explanation.symbols]),
            Column("meaning", [symbol.meaning for symbol in explanation.symbols], right=False),
        ]
    )
    return "\n\n".join(["### Symbols", legend, *map(_section_as_markdown, explanation.sections)])


def _section_as_text(section: Derivation) -> str:
    lines = [text for line in section.lines for text in _line_as_text(line)]
    return _block(_title(section), [*folded(section.remark, ROOM), *lines])


def _line_as_text(line: Line) -> list[str]:
    product = f"{line.formula} = {line.values} = {line.bytes:,} B = {in_gib(line.bytes)}"
    return [*folded(line.what, ROOM), *_continued(product), *_continued(f"[{line.source}]")]


def _continued(text: str) -> list[str]:
    return folded(text, ROOM, indent="  ", hanging="    ")


def _block(title: str, lines: list[str]) -> str:
    return "\n".join([title, *(INDENT + line for line in lines)])


def _section_as_markdown(section: Derivation) -> str:
    parts = [f"### {_title(section)}", *([section.remark] if section.remark else [])]
    if section.lines:
        lines = section.lines
        parts.append(
            as_markdown(
                [
                    Column("term", [line.what for line in lines], right=False),
                    Column("formula", [line.formula for line in lines], right=False),
                    Column("values", [line.values for line in lines], right=False),
                    Column("bytes", [f"{line.bytes:,}" for line in lines]),
                    Column("", [in_gib(line.bytes) for line in lines]),
                    Column("source", [line.source for line in lines], right=False),
                ]
            )
        )
    return "\n\n".join(parts)


def _title(section: Derivation) -> str:
    if section.component is None:
        return section.title
    total = sum(line.bytes for line in section.lines)
    return f"{section.title}: {total:,} B = {in_gib(total)}"
