"""A comparison as text for each of its readers: people, pull requests, test collectors, workflow logs, programs."""

from __future__ import annotations

import io
from collections.abc import Callable
from xml.etree import ElementTree

import msgspec

from lorabench.bench.compare import Comparison, Finding, Metric, Unmatched, Verdict, weight
from lorabench.cli.quantities import in_gib

METRIC_NAMES: dict[Metric, str] = {
    "outcome": "outcome",
    "peak_allocated_bytes": "peak memory",
    "tokens_per_second": "tokens/s",
    "final_loss": "final loss",
}

VERDICT_STYLES: dict[Verdict, str] = {"regression": "bold red", "insufficient": "yellow", "improvement": "green"}

MARKS: dict[Verdict, str] = {"regression": "❌", "insufficient": "❔", "improvement": "✅", "same": ""}


def as_text(comparison: Comparison, width: int | None = None, *, color: bool = False) -> str:
    """Return a table, worst first, and what it comes to.

    The table takes up to ``width`` columns, by folding the recipes' names; with None no line is folded.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    out = io.StringIO()
    console = Console(
        file=out,
        width=width or 2**20,
        color_system="standard" if color else None,
        force_terminal=color,
        highlight=False,
    )
    if comparison.recipes:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        table.add_column("verdict", no_wrap=True)
        table.add_column("metric", no_wrap=True)
        for name in ("before", "after", "change"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("recipe", overflow="fold")
        for label, finding in _rows(comparison):
            table.add_row(
                Text(finding.verdict, style=VERDICT_STYLES.get(finding.verdict, "")),
                METRIC_NAMES[finding.metric],
                *map(Text, _values(finding)),
                Text(label),
            )
        console.print(table)
        console.print()
    for line in _reasons(comparison) + _unmatched(comparison):
        console.print(Text(line))
    if comparison.device:
        console.print(Text(f"Device: {comparison.device}"))
    console.print(Text(_tolerances(comparison)))
    console.print(Text(conclusion(comparison), style="bold"))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def as_markdown(comparison: Comparison) -> str:
    """Return a section of GitHub-flavoured Markdown for a pull request."""
    lines = [f"### lorabench check: {_markdown(conclusion(comparison))}", ""]
    if comparison.recipes:
        lines += ["| verdict | metric | before | after | change | recipe |", "|---|---|---:|---:|---:|---|"]
        for label, finding in _rows(comparison):
            cells = [
                f"{MARKS[finding.verdict]} {finding.verdict}".strip(),
                METRIC_NAMES[finding.metric],
                *_values(finding),
                label,
            ]
            lines.append("| " + " | ".join(map(_markdown, cells)) + " |")
        lines.append("")
    lines += [f"- {_markdown(line)}" for line in _reasons(comparison) + _unmatched(comparison)]
    if comparison.device:
        lines.append(f"- Device: {_markdown(comparison.device)}")
    lines.append(f"- {_markdown(_tolerances(comparison))}")
    return "\n".join(lines)


def as_junit(comparison: Comparison) -> str:
    """Return JUnit XML: a test case for each finding, in which a regression fails and what is open is skipped.

    A recipe without a counterpart is a skipped case too.
    """
    suite = ElementTree.Element("testsuite", name="lorabench check")
    for label, finding in _rows(comparison):
        case = ElementTree.SubElement(suite, "testcase", classname=label, name=finding.metric)
        if finding.verdict in ("regression", "insufficient"):
            tag = "failure" if finding.verdict == "regression" else "skipped"
            ElementTree.SubElement(case, tag, message=_sentence(finding))
    for side, unmatched in _sides(comparison):
        for one in unmatched:
            case = ElementTree.SubElement(suite, "testcase", classname=one.label, name="counterpart")
            ElementTree.SubElement(case, "skipped", message=f"only in {side}")
    suite.set("tests", str(len(suite)))
    suite.set("failures", str(len(suite.findall("testcase/failure"))))
    suite.set("errors", "0")
    suite.set("skipped", str(len(suite.findall("testcase/skipped"))))
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suite, encoding="unicode")


def as_github(comparison: Comparison) -> str:
    """Return workflow commands of GitHub Actions, which it shows as annotations: all but what stayed the same."""
    levels: dict[Verdict, str] = {"regression": "error", "insufficient": "warning", "improvement": "notice"}
    lines = [
        _annotation(levels[finding.verdict], f"{finding.verdict} of {METRIC_NAMES[finding.metric]}", label, finding)
        for label, finding in _rows(comparison)
        if finding.verdict in levels
    ]
    for side, unmatched in _sides(comparison):
        lines += [f"::warning title={_property(f'only in {side}')}::{_data(one.label)}" for one in unmatched]
    return "\n".join([*lines, conclusion(comparison)])


def as_json(comparison: Comparison) -> str:
    """Return JSON for programs.

    An object of ``verdict``, ``exit_code``, ``device``, ``tolerances`` (``memory``, ``speed``, ``loss``, as shares),
    ``recipes``, ``only_in_baseline`` and ``only_in_results`` (each a list of ``digest`` and ``label``). Each of
    ``recipes`` has ``digest``, ``label``, ``recipe`` (its settings), ``verdict`` and ``findings``, each of which has
    ``metric`` (``outcome``, ``peak_allocated_bytes``, ``tokens_per_second``, ``final_loss``), ``before``, ``after``
    (in the unit that the metric names; the loss in nats, null where it is not finite), ``change`` ((after − before) /
    before, or null), ``verdict`` (``regression``, ``insufficient``, ``improvement``, ``same``), ``p_value`` (of
    tokens_per_second, or null) and ``reason`` (a line, or null). Lists are worst first.
    """
    fields = msgspec.to_builtins(comparison)
    said = {"verdict": fields.pop("verdict"), "exit_code": comparison.exit_code, **fields}
    return msgspec.json.format(msgspec.json.encode(said), indent=2).decode()


def conclusion(comparison: Comparison) -> str:
    """Return in one line what the comparison comes to."""
    if not comparison.recipes:
        return "Nothing could be concluded: no recipe is in both the results and the baseline."
    many = f"{len(comparison.recipes)} recipe" + ("s" if len(comparison.recipes) > 1 else "")
    if comparison.verdict == "insufficient":
        return f"Nothing could be concluded about {many}: measure more."
    plural = {"regression": "regressions", "improvement": "improvements"}
    counted = [
        f"{count} {plural.get(verdict, verdict) if count > 1 else verdict}"
        for verdict, count in comparison.counts.items()
        if count
    ]
    return f"{', '.join(counted)} in {many}."


def _rows(comparison: Comparison) -> list[tuple[str, Finding]]:
    rows = [(recipe.label, finding) for recipe in comparison.recipes for finding in recipe.findings]
    return sorted(rows, key=lambda row: weight(row[1]), reverse=True)


def _values(finding: Finding) -> tuple[str, str, str]:
    change = "" if finding.change is None else f"{finding.change:+.2%}"
    return _value(finding.metric, finding.before), _value(finding.metric, finding.after), change


def _value(metric: Metric, value: float | str | None) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return "not finite"
    if metric == "peak_allocated_bytes":
        return in_gib(round(value))
    return f"{value:.4f}" if metric == "final_loss" else f"{value:,.{1 if value >= 100 else 3}f}"


def _sentence(finding: Finding) -> str:
    before, after, change = _values(finding)
    told = f"{METRIC_NAMES[finding.metric]}: {before} before, {after} after"
    return told + (f" ({change})" if change else "") + (f": {finding.reason}" if finding.reason else "")


def _reasons(comparison: Comparison) -> list[str]:
    return [
        f"{label}: {METRIC_NAMES[finding.metric]}: {finding.reason}"
        for label, finding in _rows(comparison)
        if finding.reason
    ]


def _unmatched(comparison: Comparison) -> list[str]:
    return [f"Only in {side}: {one.label}" for side, unmatched in _sides(comparison) for one in unmatched]


def _sides(comparison: Comparison) -> tuple[tuple[str, tuple[Unmatched, ...]], ...]:
    return ("the baseline", comparison.only_in_baseline), ("the results", comparison.only_in_results)


def _tolerances(comparison: Comparison) -> str:
    allowed = comparison.tolerances
    return "Tolerances: " + ", ".join(
        f"{name} {100 * share:g}%"
        for name, share in (("memory", allowed.memory), ("speed", allowed.speed), ("loss", allowed.loss))
    )


def _markdown(text: str) -> str:
    """Return ``text`` with everything escaped that GitHub's Markdown would take for markup."""
    for char in "\\`*_[]|~#":
        text = text.replace(char, "\\" + char)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _annotation(level: str, title: str, label: str, finding: Finding) -> str:
    return f"::{level} title={_property(title)}::{_data(f'{label}: {_sentence(finding)}')}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


FORMATS: dict[str, Callable[[Comparison], str]] = {
    "text": as_text,
    "markdown": as_markdown,
    "junit": as_junit,
    "github": as_github,
    "json": as_json,
}
"""What ``--format`` names."""
