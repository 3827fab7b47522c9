"""Loss curves, held-out loss, and loss against memory. The page reads the curves from its records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lorabench.reports.quantities import format_loss, plural
from lorabench.reports.runs import MOST_STEPS, Run, by_model, methods_of
from lorabench.reports.sections.charts import Figure, by_method, figures, pareto_front

DASHES = ("", "8 3", "2 3", "12 3 2 3", "5 5", "1 5", "12 6", "8 3 2 3 2 3")
"""Stroke patterns of the curves in a figure. The colour shows the method."""
RUNS_IN_A_FIGURE = len(DASHES)


def learning(runs: Sequence[Run]) -> dict[str, Any] | None:
    """Return the figures of the runs with at least one finite loss, and their held-out losses."""
    trained = [run for run in runs if _finite(run)]
    if not trained:
        return None
    held_out = [
        run for run in trained if run.record.measurement and run.record.measurement.held_out_loss_after is not None
    ]
    fronts = [_front(model, of_model) for model, of_model in by_model(held_out or trained).items()]
    return {
        "figures": [_figure(figure) for figure in figures(trained, _finite, at_most=RUNS_IN_A_FIGURE)],
        "thinned": max(run.every for run in trained) > 1,
        "most_steps": MOST_STEPS,
        "held_out": held_out,
        "several_models": len({run.model for run in held_out}) > 1,
        "methods": methods_of(trained),
        "fronts": [front for front in fronts if front is not None],
    }


def _finite(run: Run) -> list[float]:
    measurement = run.record.measurement
    return [loss for loss in measurement.losses if loss is not None] if measurement else []


def _figure(figure: Figure) -> dict[str, Any]:
    curves = [
        {"run": run.index, "name": run.name, "method": run.method, "dash": dash}
        for run, dash in zip(figure.runs, DASHES, strict=False)
    ]
    return {
        "model": figure.model,
        "part": figure.part,
        "caption": _caption(figure.runs),
        "legend": curves,
        "chart": {"lowest": figure.lowest, "highest": figure.highest, "curves": curves, "smoothing": 0},
    }


def _caption(runs: Sequence[Run]) -> str:
    lowest = min(runs, key=lambda run: _finite(run)[-1])
    end = f"Lowest final loss: {lowest.name}, {format_loss(_finite(lowest)[-1])}."
    broken = sum(len(_finite(run)) < len(run.record.measurement.losses) for run in runs if run.record.measurement)
    return f"{end} Gaps in {plural(broken, 'curve')} are losses that were not finite." if broken else end


def _front(model: str, runs: Sequence[Run]) -> dict[str, Any] | None:
    placed = [run for run in runs if run.learnt_loss is not None and run.measured_peak_bytes is not None]
    if len(placed) < 2:
        return None
    front = pareto_front(placed, lambda run: run.measured_peak_bytes, lambda run: run.learnt_loss, highest=False)
    least, best = front[0], front[-1]
    caption = f"Least memory: {least.name}, loss {format_loss(least.learnt_loss)}."
    if best is not least:
        caption += f" Lowest loss: {best.name}, {format_loss(best.learnt_loss)}."
    held_out = all(run.record.measurement and run.record.measurement.held_out_loss_after is not None for run in placed)
    return {
        "model": model,
        "part": "",
        "caption": caption,
        "chart": {
            "x": {"label": "measured peak", "kind": "bytes", "zero": False},
            "y": {"label": "held-out loss after" if held_out else "final loss", "kind": "loss", "zero": False},
            "points": by_method(placed, lambda run: run.measured_peak_bytes, lambda run: run.learnt_loss),
            "front": [run.index for run in front],
        },
    }
