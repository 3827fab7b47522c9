"""Where the bytes go: estimated, traced, rehearsed and measured memory by component and by phase."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from lorabench.estimator.memory.breakdown import COMPONENTS, PHASES
from lorabench.reports.quantities import format_bytes, format_share
from lorabench.reports.runs import Run
from lorabench.reports.sections.charts import Figure, figures
from lorabench.reports.sections.persistent import persistent_memory

RUNS_IN_A_FIGURE = 10
ANSWERS = ("estimated", "traced", "rehearsed", "measured")


def memory(runs: Sequence[Run]) -> dict[str, Any] | None:
    """Return the figures and their legend, for runs with at least one of these answers."""
    shown = [run for run in runs if run.breakdowns]
    if not shown:
        return None
    components = _components(shown)
    answers = [answer for answer in ANSWERS if any(answer in run.breakdowns for run in shown)]
    return {
        "answers": answers,
        "phases": PHASES,
        "legend": [
            {"key": name, "label": name.replace("_", " "), "description": COMPONENTS.get(name, "")}
            for name in components
        ],
        "figures": [
            _figure(figure, components, answers) for figure in figures(shown, _lengths, at_most=RUNS_IN_A_FIGURE)
        ],
        "persistent": persistent_memory(shown),
        "detail": _detail(shown, answers),
    }


def _components(runs: Sequence[Run]) -> list[str]:
    """Return the components that are not empty in all runs: known ones first, in their own order."""
    found = {
        name
        for run in runs
        for breakdown in run.breakdowns.values()
        for name, count in breakdown.components.items()
        if count
    }
    return [name for name in COMPONENTS if name in found] + sorted(found - set(COMPONENTS))


def _lengths(run: Run) -> Iterator[int]:
    """Yield the lengths of a run's bars in bytes."""
    for breakdown in run.breakdowns.values():
        yield max(breakdown.peak_allocated_bytes, sum(breakdown.components.values()))


def _figure(figure: Figure, components: list[str], answers: list[str]) -> dict[str, Any]:
    return {
        "model": figure.model,
        "part": figure.part,
        "caption": _caption(figure.runs),
        "chart": {
            "answers": answers,
            "components": components,
            "longestBytes": figure.highest,
            "rows": [{"run": run.index, "name": run.name, "error": run.peak_error} for run in figure.runs],
        },
    }


def _caption(runs: Sequence[Run]) -> str:
    measured = [(run.measured_peak_bytes, run.name) for run in runs if run.measured_peak_bytes is not None]
    rehearsed = [(run.rehearsed_peak_bytes, run.name) for run in runs if run.rehearsed_peak_bytes is not None]
    errors = [run.peak_error for run in runs if run.peak_error is not None]
    sentences = [
        _peaks(f"{answer} peaks", of) for answer, of in (("Measured", measured), ("Rehearsed", rehearsed)) if of
    ]
    if not sentences:
        sentences.append("All of these runs failed, so none was measured.")
    if len(errors) == 1:
        sentences.append(f"The estimate is off by {format_share(errors[0])}.")
    elif errors:
        ends = dict.fromkeys(format_share(error) for error in (min(errors), max(errors)))
        sentences.append(f"The estimates are off by {' to '.join(ends)}.")
    return " ".join(sentences)


def _peaks(which: str, peaks: Sequence[tuple[int, str]]) -> str:
    ends = dict.fromkeys([min(peaks, key=lambda peak: peak[0]), max(peaks, key=lambda peak: peak[0])])
    return f"{which}: {' to '.join(f'{format_bytes(bytes_)} ({name})' for bytes_, name in ends)}."


def _detail(runs: Sequence[Run], answers: list[str]) -> dict[str, Any]:
    """Return the charts of the phases and the timeline of one run, which the reader chooses."""
    with_timeline = [run for run in runs if has_timeline(run)]
    largest = max(
        with_timeline or runs, key=lambda run: max(one.peak_allocated_bytes for one in run.breakdowns.values())
    )
    phases = {name for run in runs for one in run.breakdowns.values() for name in one.phase_peaks_bytes}
    return {
        "run": largest.index,
        "runs": [run.index for run in runs],
        "phases": {
            "run": largest.index,
            "answers": answers,
            "phases": [name for name in PHASES if name in phases] + sorted(phases - set(PHASES)),
        },
        "timeline": {"run": largest.index} if with_timeline else None,
    }


def has_timeline(run: Run) -> bool:
    """Return whether live bytes over a step are known, measured or traced."""
    measurement = run.record.measurement
    return run.trace is not None or (measurement is not None and measurement.timeline is not None)
