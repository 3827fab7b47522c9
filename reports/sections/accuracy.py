"""Estimated and measured peak memory."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import Any

from lorabench.reports.quantities import format_bytes, format_share, plural
from lorabench.reports.runs import Run, methods_of
from lorabench.reports.sections.charts import by_method

BANDS = (0.01, 0.05)
EDGES = (-0.2, -0.1, -0.05, -0.02, -0.01, -0.005, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
"""Edges of the histogram's bins. None is at 0, so exact estimates are in the middle of a bin."""
WORST = 10


def accuracy(runs: Sequence[Run]) -> dict[str, Any] | None:
    """Return scatter plot, histogram and worst errors of the runs that have an estimate and a measurement."""
    compared = [run for run in runs if run.peak_error is not None]
    if not compared:
        return None
    worst = sorted(compared, key=lambda run: -abs(run.peak_error or 0))[:WORST]
    return {
        "scatter": {
            "model": "",
            "caption": _scatter_caption(compared),
            "chart": {
                "x": {"label": "measured peak", "kind": "bytes", "zero": True},
                "y": {"label": "estimated peak", "kind": "bytes", "zero": True},
                "points": by_method(
                    compared, lambda run: run.measured_peak_bytes, lambda run: run.estimated_peak_bytes
                ),
                "bands": BANDS,
            },
        },
        "distribution": {"model": "", "caption": _distribution_caption(compared), "chart": _distribution(compared)},
        "methods": methods_of(compared),
        "worst": [(run, why_off(run)) for run in worst if run.peak_error],
        "bands": BANDS,
    }


def why_off(run: Run) -> str:
    """Return the largest difference between estimate and measurement: phase of the peak, and component."""
    estimated, measured = run.breakdowns["estimated"], run.breakdowns["measured"]
    differences = []
    if estimated.phase != measured.phase:
        differences.append(f"peak estimated in {estimated.phase}, measured in {measured.phase}")
    names = estimated.components.keys() | measured.components.keys()
    gaps = {
        name: estimated.components.get(name, 0) - measured.components.get(name, 0)
        for name in sorted(names, key=str.casefold)
    }
    name = max(gaps, key=lambda name: abs(gaps[name]), default=None)
    if name is not None and gaps[name]:
        sizes = [format_bytes(memory.components.get(name, 0)) for memory in (estimated, measured)]
        gap = f"{gaps[name]:+,} bytes".replace("-", "−")
        differences.append(f"{name.replace('_', ' ')}: {sizes[0]} estimated, {sizes[1]} measured, {gap}")
    unexplained = measured.peak_allocated_bytes - sum(measured.components.values())
    if abs(unexplained) > abs(gaps.get(name or "", 0)):
        differences.append(f"{abs(unexplained):,} bytes of the measured peak are in no component")
    return "; ".join(differences)


def _scatter_caption(compared: Sequence[Run]) -> str:
    errors = [abs(run.peak_error or 0) for run in compared]
    within = [sum(error <= band for error in errors) for band in BANDS]
    shares = ", ".join(f"{count:,} within {band:.0%}" for count, band in zip(within, BANDS, strict=True))
    return f"{plural(len(compared), 'run')}: {shares}. On the diagonal the estimate is exact."


def _distribution_caption(compared: Sequence[Run]) -> str:
    errors = [run.peak_error or 0 for run in compared]
    typical = f"Median absolute error: {format_share(median(map(abs, errors))).lstrip('+')}"
    least, most = format_share(min(errors)), format_share(max(errors))
    return f"{typical}." if least == most else f"{typical}; range {least} to {most}."


def _distribution(compared: Sequence[Run]) -> dict[str, Any]:
    counts = {method: [0] * (len(EDGES) + 1) for method in methods_of(compared)}
    for run in compared:
        counts[run.method][bisect_left(EDGES, run.peak_error or 0)] += 1
    filled = [place for place in range(len(EDGES) + 1) if any(of_method[place] for of_method in counts.values())]
    first, last = min(*filled, bisect_left(EDGES, -BANDS[-1]) + 1), max(*filled, bisect_left(EDGES, BANDS[-1]))
    names = [f"{100 * edge:+g}%".replace("-", "−") for edge in EDGES]
    ranges = [
        f"below {names[0]}",
        *(f"{low} to {high}" for low, high in pairwise(names)),
        f"above {names[-1]}",
    ]
    return {
        "ranges": ranges[first : last + 1],
        "counts": {method: numbers[first : last + 1] for method, numbers in counts.items()},
    }
