"""Compare results folders with the first one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from lorabench.bench.check.baseline import compare
from lorabench.bench.check.findings import VERDICTS, Comparison, Finding
from lorabench.bench.check.thresholds import Thresholds
from lorabench.bench.records.record import RunRecord
from lorabench.estimator.errors import UserError
from lorabench.reports.quantities import format_bytes, format_loss, format_seconds, format_share, plural
from lorabench.reports.runs import Run
from lorabench.reports.sections.charts import Quantity

BAND = 0.05
"""Distance of the charts' dashed lines from the diagonal."""


def comparison(runs: Sequence[Run]) -> dict[str, Any] | None:
    """Return the changes from the first folder to each other one that was measured (or rehearsed) like it.

    None if there is no such folder.
    """
    folders: dict[int, list[Run]] = {}
    for run in runs:
        folders.setdefault(run.folder_number, []).append(run)
    if len(folders) < 2:
        return None
    first, *others = (folders[number] for number in sorted(folders))
    others = [other for other in others if other[0].record.rehearsed == first[0].record.rehearsed]
    if not others:
        return None
    return {"before": first[0].folder, "pairs": [_pair(first, other) for other in others], "verdicts": VERDICTS}


def _pair(before: Sequence[Run], after: Sequence[Run]) -> dict[str, Any]:
    pair: dict[str, Any] = {"after": after[0].folder, "error": None}
    try:
        compared = _compare([run.record for run in after], [run.record for run in before])
    except UserError as error:
        return pair | {"error": str(error)}
    rows = [
        {
            "name": recipe.label,
            "metric": finding.name,
            "verdict": finding.verdict,
            "before": _written(finding, finding.before),
            "after": _written(finding, finding.after),
            "change": finding.change,
            "interval": " to ".join(map(format_share, finding.interval)) if finding.interval else "–",
            "reason": finding.reason or "",
        }
        for recipe in compared.recipes
        for finding in recipe.findings
    ]
    counts = {verdict: count for verdict, count in compared.counts.items() if count}
    return pair | {
        "rows": rows,
        "counts": counts,
        "recipes": plural(len(compared.recipes), "recipe"),
        "changes": compared.environment_changes,
        "only": {
            before[0].folder: [one.label for one in compared.only_in_baseline],
            after[0].folder: [one.label for one in compared.only_in_results],
        },
        "charts": _charts(before, after),
    }


def _compare(results: Sequence[RunRecord], baseline: Sequence[RunRecord]) -> Comparison:
    """Compare as `lorabench check` does, but without step times if scipy is missing."""
    try:
        import scipy  # noqa: F401
    except ImportError:
        return compare(results, baseline, replace(Thresholds(), speed=None), across_devices=True)
    return compare(results, baseline, across_devices=True)


def _written(finding: Finding, value: float | str | None) -> str:
    if isinstance(value, str):
        return value
    if finding.metric.endswith("_bytes"):
        return format_bytes(None if value is None else int(value))
    if finding.metric == "step_seconds":
        return format_seconds(value)
    if finding.metric == "final_loss":
        return "not finite" if value is None else format_loss(value)
    return "–" if value is None else f"{value:,.0f}"


def _charts(before: Sequence[Run], after: Sequence[Run]) -> list[dict[str, Any]]:
    """Return speed after against before, and memory, of the runs that both folders have."""
    old = {run.record.key: run for run in before}
    both = [(old[run.record.key], run) for run in after if run.record.key in old]
    charts = []
    quantities: list[tuple[str, str, Quantity]] = [
        ("tokens/s", "rate", lambda run: run.tokens_per_second),
        ("measured peak", "bytes", lambda run: run.measured_peak_bytes),
    ]
    for label, kind, value in quantities:
        points: dict[str, list[tuple[int, float, float]]] = {}
        for earlier, later in both:
            was, became = value(earlier), value(later)
            if was is not None and became is not None:
                points.setdefault(later.method, []).append((later.index, was, became))
        if points:
            higher = sum(up > across for placed in points.values() for _, across, up in placed)
            count = sum(map(len, points.values()))
            charts.append(
                {
                    "model": f"{label.capitalize()}, before and after",
                    "part": "",
                    "caption": f"Above the diagonal, {label} rose: {higher:,} of {plural(count, 'run')}. "
                    f"The dashed lines are {BAND:.0%} off.",
                    "chart": {
                        "x": {"label": f"{label}, {before[0].folder}", "kind": kind, "zero": True},
                        "y": {"label": f"{label}, {after[0].folder}", "kind": kind, "zero": True},
                        "points": points,
                        "bands": [BAND],
                    },
                }
            )
    return charts
