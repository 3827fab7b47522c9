"""The output formats of `lorabench check`: text, Markdown, JUnit XML, GitHub annotations, JSON."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import click
import msgspec

from lorabench.bench.check.findings import (
    EXIT_CODES,
    Comparison,
    Finding,
    Judgement,
    Metric,
    RecipeComparison,
    Unmatched,
)
from lorabench.cli import listing
from lorabench.cli.listing import folded
from lorabench.estimator.foreign_text import printable, printable_lines
from lorabench.estimator.quantities import in_gib
from lorabench.estimator.recipes.recipe import STRUCTS

COLORS: dict[Judgement, str] = {
    "regression": "red",
    "suspicious": "yellow",
    "insufficient": "yellow",
    "improvement": "green",
}
MARKS: dict[Judgement, str] = {
    "regression": "❌",
    "suspicious": "⚠️",
    "insufficient": "❔",
    "improvement": "✅",
}
LEVELS: dict[Judgement, str] = {
    "regression": "error",
    "suspicious": "warning",
    "insufficient": "warning",
    "improvement": "notice",
}
"""Verdict → level of the GitHub annotation."""
COLUMNS = {
    "baseline": ("before", "after", "change", "95% interval"),
    "estimate": ("estimated", "measured", "off by", "allowed"),
}
SCHEMA_VERSION = 1


class CheckAnswer(Comparison, frozen=True, kw_only=True):
    """What ``--format json`` writes; docs/check.schema.json is its JSON Schema."""

    schema_version: int = SCHEMA_VERSION
    exit_code: int


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a `CheckAnswer`. It does not list the settings of a `Recipe` again."""
    schema = msgspec.json.schema(CheckAnswer)
    for struct in STRUCTS:
        schema["$defs"].pop(struct.__name__, None)
    schema["$defs"]["Recipe"] = {"type": "object", "description": "The recipe's settings, by the names of its options."}
    for definition in schema["$defs"].values():
        if "description" in definition:  # msgspec before 0.23 keeps a docstring's indentation
            definition["description"] = inspect.cleandoc(definition["description"])
    return schema


def as_text(comparison: Comparison, *, color: bool = False) -> str:
    """Return the findings of each recipe, worst first, then notes and the conclusion; foreign text is printable."""

    def styled(text: str, finding: Finding) -> str:
        shade = None if finding.allowed is not None else COLORS.get(finding.verdict)
        return click.style(text, fg=shade, bold=finding.verdict == "regression") if color and shade else text

    titles = ("verdict", "metric", *_titles(comparison))
    rows = {id(finding): _cells(finding) for recipe in comparison.recipes for finding in recipe.findings}
    widths = [max(map(len, column)) for column in zip(titles, *rows.values(), strict=True)]

    def aligned(cells: tuple[str, ...]) -> list[str]:
        return [
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]

    lines = []
    if rows:
        lines.append("  " + "  ".join(aligned(titles)))
    for recipe in comparison.recipes:
        lines.append(printable_lines(_named(recipe)))
        for finding in recipe.findings:
            verdict, *others = aligned(rows[id(finding)])
            lines.append(f"  {styled(verdict, finding)}  {'  '.join(others)}".rstrip())
            lines += [
                line
                for remark in _remarks(finding)
                for line in folded(printable(remark), indent="      ", hanging="        ")
            ]
    lines += [""] if rows else []
    lines += [line for note in _notes(comparison) for line in folded(printable(note), hanging="  ")]
    last = conclusion(comparison)
    return "\n".join([*lines, click.style(last, bold=True) if color else last])


def as_markdown(comparison: Comparison) -> str:
    """Return a section of GitHub-flavoured Markdown for a pull request."""
    lines = [f"### lorabench check: {_markdown(conclusion(comparison))}", ""]
    if comparison.recipes:
        titles = ("verdict", "metric", *_titles(comparison), "recipe")
        lines += [f"| {' | '.join(titles)} |", "|---|---|---:|---:|---:|---:|---|"]
        for label, finding in _rows(comparison):
            verdict, *others = _cells(finding)
            mark = "" if finding.allowed is not None else MARKS.get(finding.verdict, "")
            cells = [f"{mark} {verdict}".strip(), *others, label]
            lines.append("| " + " | ".join(map(_markdown, cells)) + " |")
        lines.append("")
    remarks = [
        f"{label}: {finding.name}: {remark}" for label, finding in _rows(comparison) for remark in _remarks(finding)
    ]
    return "\n".join(lines + [f"- {_markdown(line)}" for line in remarks + _notes(comparison)])


def as_junit(comparison: Comparison) -> str:
    """Return JUnit XML with a test case for each finding.

    A regression is a failed case. An inconclusive or allowed finding is a skipped case, and so is a recipe that only
    one side has.
    """
    suite = ElementTree.Element("testsuite", name="lorabench check")
    for label, finding in _rows(comparison):
        case = ElementTree.SubElement(suite, "testcase", classname=label, name=finding.metric)
        if finding.allowed is None and finding.verdict == "regression":
            ElementTree.SubElement(case, "failure", type=finding.verdict, message=_sentence(finding))
        elif finding.allowed is not None or finding.verdict in ("suspicious", "insufficient"):
            ElementTree.SubElement(case, "skipped", message=f"{_verdict(finding)}: {_sentence(finding)}")
    for side, unmatched in _sides(comparison):
        for one in unmatched:
            case = ElementTree.SubElement(suite, "testcase", classname=one.label, name="counterpart")
            ElementTree.SubElement(case, "skipped", message=f"only in {side}")
    root = ElementTree.Element("testsuites")
    for element in (suite, root):
        element.set("tests", str(len(suite)))
        element.set("failures", str(len(suite.findall("testcase/failure"))))
        element.set("errors", "0")
        element.set("skipped", str(len(suite.findall("testcase/skipped"))))
    root.append(suite)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode")


def as_github(comparison: Comparison) -> str:
    """Return workflow commands that GitHub Actions shows as annotations, for every finding except ``same``."""
    lines = []
    for label, finding in _rows(comparison):
        level = "notice" if finding.allowed is not None else LEVELS.get(finding.verdict)
        if level is not None:
            title = _property(f"{_verdict(finding)} of {finding.name}")
            lines.append(f"::{level} title={title}::{_data(f'{label}: {_sentence(finding)}')}")
    for side, unmatched in _sides(comparison):
        lines += [f"::warning title={_property(f'only in {side}')}::{_data(one.label)}" for one in unmatched]
    return "\n".join([*lines, conclusion(comparison)])


def as_json(comparison: Comparison) -> str:
    """Return JSON for programs: a `CheckAnswer`."""
    fields = {name: getattr(comparison, name) for name in Comparison.__struct_fields__}
    answer = CheckAnswer(exit_code=EXIT_CODES[comparison.verdict], **fields)
    return listing.as_json(answer)


def conclusion(comparison: Comparison) -> str:
    """Return the conclusion of the comparison in one line."""
    if not comparison.recipes:
        return "No conclusion: no recipe is in both the results and the baseline."
    many = f"{len(comparison.recipes)} recipe" + ("s" if len(comparison.recipes) > 1 else "")
    plural = {"regression": "regressions", "improvement": "improvements"}
    counted = [
        f"{count} {plural.get(verdict, verdict) if count > 1 else verdict}"
        for verdict, count in comparison.counts.items()
        if count
    ]
    if comparison.allowed_count:
        counted.append(f"{comparison.allowed_count} allowed")
    summary = f"{', '.join(counted)} in {many}."
    if comparison.verdict == "insufficient" and not comparison.counts["insufficient"]:
        how = "rehearsed" if comparison.rehearsed else "measured"
        return f"No conclusion: nothing was {how} on both sides: {summary}"
    if comparison.verdict == "insufficient" and not any(comparison.counts[one] for one in ("improvement", "same")):
        return f"No conclusion: {summary}"
    return f"Partly inconclusive: {summary}" if EXIT_CODES[comparison.verdict] == 3 else summary


def _titles(comparison: Comparison) -> tuple[str, ...]:
    titles = COLUMNS[comparison.against]
    return tuple("rehearsed" if comparison.rehearsed and title == "measured" else title for title in titles)


def _rows(comparison: Comparison) -> list[tuple[str, Finding]]:
    return [(recipe.label, finding) for recipe in comparison.recipes for finding in recipe.findings]


def _named(recipe: RecipeComparison) -> str:
    before, after = recipe.runs
    if max(before, after) == 1:
        return recipe.label
    return f"{recipe.label} ({after} runs)" if not before else f"{recipe.label} ({before} and {after} runs)"


def _cells(finding: Finding) -> tuple[str, ...]:
    change = "" if finding.change is None else f"{finding.change:+.2%}"
    interval = "" if finding.interval is None else " to ".join(f"{end:+.1%}" for end in finding.interval)
    return (
        "allowed" if finding.allowed is not None else finding.verdict,
        finding.name,
        _value(finding.metric, finding.before),
        _value(finding.metric, finding.after),
        change,
        interval,
    )


def _value(metric: Metric, value: float | str | None) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return "not finite" if metric == "final_loss" else "unknown"
    if metric == "parameters":
        return f"{value / 1e6:,.1f} M"
    if metric == "step_seconds":
        return f"{value:.3f} s" if value >= 1 else f"{1000 * value:.1f} ms"
    if metric == "final_loss":
        return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.3g}"
    return in_gib(round(value))


def _verdict(finding: Finding) -> str:
    return finding.verdict if finding.allowed is None else f"{finding.verdict}, allowed"


def _remarks(finding: Finding) -> list[str]:
    allowed = [] if finding.allowed is None else [f"{_verdict(finding)}: {finding.allowed}"]
    return allowed + ([] if finding.reason is None else [finding.reason])


def _sentence(finding: Finding) -> str:
    _, metric, before, after, change, interval = _cells(finding)
    sentence = f"{metric}: {before} to {after}"
    if change:
        sentence += f" ({change}{f', {interval}' if interval else ''})"
    return ": ".join([sentence, *_remarks(finding)])


def _notes(comparison: Comparison) -> list[str]:
    lines = [f"Only in {side}: {one.label}" for side, unmatched in _sides(comparison) for one in unmatched]
    lines += [f"Unused --allow: {one}" for one in comparison.unused_waivers]
    if comparison.against == "estimate":
        lines.append("Estimate: computed now; the predictions stored in the records are ignored")
    if any(finding.phase is not None for _, finding in _rows(comparison)):
        lines.append("Peak by phase: only the phase that is furthest off is shown")
    if comparison.device:
        how = ", rehearsed on null GPUs: nothing was measured" if comparison.rehearsed else ""
        lines.append(f"Device: {comparison.device}{how}")
    if comparison.environment_changes:
        lines.append(f"Changed since the baseline: {', '.join(comparison.environment_changes)}")
    if comparison.run_to_run is not None:
        lines.append(f"Run-to-run spread of step times: {comparison.run_to_run:.2%}")
    times = {finding.verdict for _, finding in _rows(comparison) if finding.metric == "step_seconds"}
    if len(comparison.recipes) > 1 and times == {"regression"}:
        lines.append("All recipes are slower: the change, or the whole machine? Rerun the baseline to find out")
    return [*lines, _thresholds(comparison)]


def _sides(comparison: Comparison) -> tuple[tuple[str, tuple[Unmatched, ...]], ...]:
    return ("the baseline", comparison.only_in_baseline), ("the results", comparison.only_in_results)


def _thresholds(comparison: Comparison) -> str:
    against_estimate = comparison.against == "estimate"
    shares = {
        name: share
        for name, share in msgspec.structs.asdict(comparison.thresholds).items()
        if (name == "estimate") == against_estimate
    }
    listed = [
        f"{name.replace('_', ' ')} " + ("off" if share is None else f"{100 * share:g}%")
        for name, share in shares.items()
    ]
    return f"Thresholds: {', '.join(listed)}"


def _markdown(text: str) -> str:
    """Return ``text`` with all of GitHub's Markdown syntax escaped."""
    for char in "\\`*_[]|~#":
        text = text.replace(char, "\\" + char)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


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
"""``--format`` → the function that writes it."""
