"""Estimated against measured memory, by component."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lorabench.estimator.breakdown import COMPONENTS, Breakdown
from lorabench.reports.quantities import format_bytes, format_share
from lorabench.reports.runs import Run
from lorabench.reports.sections.figures import Figure, figures

RUNS_IN_A_FIGURE = 12


def memory(runs: Sequence[Run]) -> dict[str, Any] | None:
    """Return the figures, their legend and the table of peaks, for the runs with an estimate or a measurement."""
    shown = [run for run in runs if breakdowns(run)]
    if not shown:
        return None
    components = _components(shown)
    return {
        "legend": [
            {"key": name, "label": name.replace("_", " "), "description": COMPONENTS.get(name, "")}
            for name in components
        ],
        "figures": [_figure(figure, components) for figure in figures(shown, at_most=RUNS_IN_A_FIGURE)],
        "runs": shown,
        "several_models": len({run.model for run in shown}) > 1,
        "reserved": any(memory.device_total_bytes for run in shown for memory in breakdowns(run).values()),
    }


def breakdowns(run: Run) -> dict[str, Breakdown]:
    """Return the run's breakdowns: ``estimated``, ``measured``, those of the two that there are."""
    record = run.record
    answers = {"estimated": record.prediction, "measured": record.measurement}
    return {answer: source.memory for answer, source in answers.items() if source}


def _components(runs: Sequence[Run]) -> list[str]:
    """Return the components that any run has bytes in, the known ones first and in their own order."""
    found = {
        name
        for run in runs
        for breakdown in breakdowns(run).values()
        for name, count in breakdown.components.items()
        if count
    }
    return [name for name in COMPONENTS if name in found] + sorted(found - set(COMPONENTS))


def _figure(figure: Figure, components: list[str]) -> dict[str, Any]:
    longest = max(
        max(breakdown.peak_allocated_bytes, sum(breakdown.components.values()))
        for run in figure.of_model
        for breakdown in breakdowns(run).values()
    )
    return {
        "model": figure.model,
        "part": figure.part,
        "caption": _caption(figure.runs),
        "chart": {
            "components": components,
            "longestBytes": longest,
            "rows": [{"run": run.index, "name": run.name, "error": run.peak_error} for run in figure.runs],
        },
    }


def _caption(runs: Sequence[Run]) -> str:
    measured = [run for run in runs if run.measured_peak_bytes is not None]
    errors = [run.peak_error for run in runs if run.peak_error is not None]
    said = []
    if measured:
        least = min(measured, key=lambda run: run.measured_peak_bytes or 0)
        most = max(measured, key=lambda run: run.measured_peak_bytes or 0)
        said.append(f"Measured peaks: {format_bytes(least.measured_peak_bytes)} ({least.name})")
        if most is not least:
            said[0] += f" to {format_bytes(most.measured_peak_bytes)} ({most.name})"
        said[0] += "."
    else:
        said.append("None of these runs was measured: they failed.")
    if len(errors) == 1:
        said.append(f"The estimate is off by {format_share(errors[0])}.")
    elif errors:
        said.append(f"The estimates are off by {format_share(min(errors))} to {format_share(max(errors))}.")
    return " ".join(said)
