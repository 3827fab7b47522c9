"""Predicted against measured peak memory."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import Any

from lorabench.reports.quantities import format_bytes, format_share, plural
from lorabench.reports.runs import Run, methods_of
from lorabench.reports.sections.points import by_method

BANDS = (0.01, 0.05)
EDGES = (-0.2, -0.1, -0.05, -0.02, -0.01, -0.005, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
"""Between the ranges of the distribution; none at 0, so that exact estimates are in the middle of one."""
WORST = 10


def accuracy(runs: Sequence[Run]) -> dict[str, Any] | None:
    """Return the scatter, the distribution of errors and the worst of them, for runs with estimate and measurement."""
    held = [run for run in runs if run.peak_error is not None]
    if not held:
        return None
    worst = sorted(held, key=lambda run: -abs(run.peak_error or 0))[:WORST]
    return {
        "scatter": {
            "model": "",
            "caption": _scatter_caption(held),
            "chart": {
                "x": {"label": "measured peak", "kind": "bytes", "zero": True},
                "y": {"label": "estimated peak", "kind": "bytes", "zero": True},
                "points": by_method(held, lambda run: run.measured_peak_bytes, lambda run: run.estimated_peak_bytes),
                "bands": BANDS,
            },
        },
        "distribution": {"model": "", "caption": _distribution_caption(held), "chart": _distribution(held)},
        "methods": methods_of(held),
        "worst": [(run, why_off(run)) for run in worst if run.peak_error],
        "bands": BANDS,
    }


def why_off(run: Run) -> str:
    """Return where estimate and measurement of a run part most: the phase of the peak, and the component."""
    estimated, measured = run.breakdowns["estimated"], run.breakdowns["measured"]
    said = []
    if estimated.phase != measured.phase:
        said.append(f"peak expected in {estimated.phase}, measured in {measured.phase}")
    names = estimated.components.keys() | measured.components.keys()
    gaps = {
        name: estimated.components.get(name, 0) - measured.components.get(name, 0)
        for name in sorted(names, key=str.casefold)
    }
    name = max(gaps, key=lambda name: abs(gaps[name]), default=None)
    if name is not None and gaps[name]:
        direction = "more" if gaps[name] > 0 else "less"
        pair = " against ".join(format_bytes(memory.components.get(name, 0)) for memory in (estimated, measured))
        said.append(f"{name.replace('_', ' ')}: {pair}, {abs(gaps[name]):,} bytes {direction} than measured")
    unexplained = measured.peak_allocated_bytes - sum(measured.components.values())
    if abs(unexplained) > abs(gaps.get(name or "", 0)):
        said.append(f"{abs(unexplained):,} bytes of the measured peak in no component")
    return "; ".join(said)


def _scatter_caption(held: Sequence[Run]) -> str:
    errors = [abs(run.peak_error or 0) for run in held]
    within = [sum(error <= band for error in errors) for band in BANDS]
    shares = ", ".join(f"{count:,} within {band:.0%}" for count, band in zip(within, BANDS, strict=True))
    return f"Of {plural(len(held), 'run')}, {shares}. On the diagonal the estimate is exact."


def _distribution_caption(held: Sequence[Run]) -> str:
    errors = [run.peak_error or 0 for run in held]
    said = f"Median error without its sign: {format_share(median(map(abs, errors))).lstrip('+')}"
    least, most = format_share(min(errors)), format_share(max(errors))
    return f"{said}." if least == most else f"{said}; from {least} to {most}."


def _distribution(held: Sequence[Run]) -> dict[str, Any]:
    counts = {method: [0] * (len(EDGES) + 1) for method in methods_of(held)}
    for run in held:
        counts[run.method][bisect_left(EDGES, run.peak_error or 0)] += 1
    filled = [place for place in range(len(EDGES) + 1) if any(held[place] for held in counts.values())]
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
