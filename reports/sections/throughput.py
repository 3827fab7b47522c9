"""Tokens per second by recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lorabench.reports.quantities import format_number
from lorabench.reports.runs import Run
from lorabench.reports.sections.figures import Figure, figures

RUNS_IN_A_FIGURE = 16


def throughput(runs: Sequence[Run]) -> dict[str, Any] | None:
    """Return the figures of the runs whose steps were timed."""
    timed = [run for run in runs if run.tokens_per_second is not None]
    if not timed:
        return None
    return {
        "methods": list(dict.fromkeys(run.method for run in timed)),
        "figures": [_figure(figure) for figure in figures(timed, at_most=RUNS_IN_A_FIGURE)],
    }


def _figure(figure: Figure) -> dict[str, Any]:
    return {
        "model": figure.model,
        "part": figure.part,
        "caption": _caption(figure.runs),
        "chart": {
            "longest": max(_longest(run) for run in figure.of_model),
            "rows": [
                {
                    "run": run.index,
                    "name": run.name,
                    "method": run.method,
                    "tokensPerSecond": run.tokens_per_second,
                    "quartiles": run.tokens_per_second_quartiles,
                }
                for run in figure.runs
            ],
        },
    }


def _longest(run: Run) -> float:
    quartiles = run.tokens_per_second_quartiles
    return max(run.tokens_per_second or 0, quartiles[1] if quartiles else 0)


def _caption(runs: Sequence[Run]) -> str:
    fastest = max(runs, key=lambda run: run.tokens_per_second or 0)
    slowest = min(runs, key=lambda run: run.tokens_per_second or 0)
    said = f"{fastest.name}: {format_number(fastest.tokens_per_second)} tokens/s"
    if slowest is fastest:
        return f"{said}."
    return f"Fastest is {said}; slowest is {slowest.name}: {format_number(slowest.tokens_per_second)} tokens/s."
