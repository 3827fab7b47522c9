"""Loss curves by recipe. The losses themselves are read from the page's records."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from lorabench.reports.quantities import format_loss, plural
from lorabench.reports.runs import Run
from lorabench.reports.sections.figures import Figure, figures

RUNS_IN_A_FIGURE = 8
DASHES = ("", "8 3", "2 3", "12 3 2 3", "5 5", "1 5", "12 6", "8 3 2 3 2 3")
"""Stroke patterns that tell apart the curves of one method, which share its colour."""


def losses(runs: Sequence[Run]) -> dict[str, Any] | None:
    """Return the figures of the runs with at least one finite loss."""
    trained = [run for run in runs if _finite(run)]
    if not trained:
        return None
    return {"figures": [_figure(figure) for figure in figures(trained, at_most=RUNS_IN_A_FIGURE)]}


def _finite(run: Run) -> list[float]:
    measurement = run.record.measurement
    return [loss for loss in measurement.losses if loss is not None] if measurement else []


def _figure(figure: Figure) -> dict[str, Any]:
    curves = []
    used: dict[str, int] = defaultdict(int)
    for run in figure.runs:
        dash = DASHES[used[run.method] % len(DASHES)]
        used[run.method] += 1
        curves.append({"run": run.index, "name": run.name, "method": run.method, "dash": dash})
    every = [loss for run in figure.of_model for loss in _finite(run)]
    return {
        "model": figure.model,
        "part": figure.part,
        "caption": _caption(figure.runs),
        "legend": curves,
        "chart": {"lowest": min(every), "highest": max(every), "curves": curves},
    }


def _caption(runs: Sequence[Run]) -> str:
    lowest = min(runs, key=lambda run: _finite(run)[-1])
    said = f"Lowest at the end: {lowest.name}, {format_loss(_finite(lowest)[-1])}."
    broken = sum(len(_finite(run)) < len(run.record.measurement.losses) for run in runs if run.record.measurement)
    return f"{said} Gaps in {plural(broken, 'curve')} are losses that were not finite." if broken else said
