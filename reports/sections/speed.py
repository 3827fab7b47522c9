"""Tokens per second by recipe, effects of single choices, and memory against speed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any, NamedTuple

from lorabench.reports.pairs import checkpointing_pairs, method_pairs, rank_pairs
from lorabench.reports.quantities import format_number, plural
from lorabench.reports.runs import Run, methods_of
from lorabench.reports.sections.charts import Figure, by_method, figures, pareto_front

RUNS_IN_A_FIGURE = 16


class Cost(NamedTuple):
    """Effect of one choice on memory and speed, all else equal, as relative changes."""

    choice: str
    pairs: int
    unstable: int
    """Number of pairs with unstable step times."""
    memory: float
    memory_range: tuple[float, float]
    speed: float
    speed_range: tuple[float, float]


def speed(runs: Sequence[Run]) -> dict[str, Any] | None:
    """Return figures of the timed runs, effects of choices, and memory against speed."""
    timed = [run for run in runs if run.tokens_per_second is not None]
    if not timed:
        return None
    return {
        "methods": methods_of(timed),
        "figures": [_figure(figure) for figure in figures(timed, _lengths, at_most=RUNS_IN_A_FIGURE)],
        "utilised": any(run.timed.mfu is not None for run in timed if run.timed),
        "costs": costs(timed),
        "fronts": [_front(model, of_model) for model, of_model in _by_work(timed).items() if len(of_model) > 1],
    }


def costs(runs: Sequence[Run]) -> list[Cost]:
    """Return the effects of checkpointing, QLoRA, LoRA and rank, from runs that differ only in these."""
    ranks: dict[tuple[int, int], list[tuple[Run, Run]]] = defaultdict(list)
    for low, high in rank_pairs(runs):
        ranks[low.record.recipe.rank or 0, high.record.recipe.rank or 0].append((low, high))
    found = {
        "Gradient checkpointing, off → on": list(checkpointing_pairs(runs)),
        "LoRA → QLoRA": list(method_pairs(runs, "lora", "qlora")),
        "full → LoRA": list(method_pairs(runs, "full", "lora")),
        **{f"Rank {low} → {high}": pairs for (low, high), pairs in sorted(ranks.items())},
    }
    return [_cost(choice, pairs) for choice, pairs in found.items() if pairs]


def _cost(choice: str, pairs: Sequence[tuple[Run, Run]]) -> Cost:
    memory = [(new.measured_peak_bytes or 0) / (old.measured_peak_bytes or 1) - 1 for old, new in pairs]
    rates = [(new.tokens_per_second or 0) / (old.tokens_per_second or 1) - 1 for old, new in pairs]
    ends = [(min(shares), max(shares)) for shares in (memory, rates)]
    unstable = sum(bool(old.unstable or new.unstable) for old, new in pairs)
    return Cost(choice, len(pairs), unstable, median(memory), ends[0], median(rates), ends[1])


def _by_work(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Return the runs of each model and device: speeds of different ones are not comparable."""
    groups: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.model, run.record.device.name].append(run)
    several = len({device for _, device in groups}) > 1
    return {f"{model} on {device}" if several else model: members for (model, device), members in groups.items()}


def _front(model: str, runs: Sequence[Run]) -> dict[str, Any]:
    front = pareto_front(runs, lambda run: run.measured_peak_bytes, lambda run: run.tokens_per_second, highest=True)
    least, fastest = front[0], front[-1]
    on_it = f"{len(front):,} of {plural(len(runs), 'recipe')} on the front, from {least.name}"
    return {
        "model": model,
        "part": "",
        "caption": f"{on_it} (least memory) to {fastest.name} (fastest)."
        if least is not fastest
        else f"{least.name} needs least memory and is fastest.",
        "chart": {
            "x": {"label": "measured peak", "kind": "bytes", "zero": False},
            "y": {"label": "tokens/s", "kind": "rate", "zero": True},
            "points": by_method(runs, lambda run: run.measured_peak_bytes, lambda run: run.tokens_per_second),
            "front": [run.index for run in front],
        },
    }


def _figure(figure: Figure) -> dict[str, Any]:
    return {
        "model": figure.model,
        "part": figure.part,
        "caption": _caption(figure.runs),
        "chart": {
            "longest": figure.highest,
            "rows": [_row(run) for run in figure.runs],
        },
    }


def _row(run: Run) -> dict[str, Any]:
    measurement, prediction = run.timed, run.record.prediction
    assert measurement is not None
    predicted = prediction.speed if prediction else None
    return {
        "run": run.index,
        "name": run.name,
        "method": run.method,
        "tokensPerSecond": run.tokens_per_second,
        "interval": run.tokens_per_second_interval,
        "steps": len(measurement.step_seconds),
        "stepSeconds": measurement.median_step_seconds,
        "mfu": measurement.mfu,
        "hfu": measurement.hfu,
        "estimated": predicted.tokens_per_second_range if predicted else None,
        "unstable": run.unstable,
    }


def _lengths(run: Run) -> tuple[float, ...]:
    """Return the ends of a run's bar and interval."""
    return (run.tokens_per_second or 0, *(run.tokens_per_second_interval or ()))


def _caption(runs: Sequence[Run]) -> str:
    fastest = max(runs, key=lambda run: run.tokens_per_second or 0)
    slowest = min(runs, key=lambda run: run.tokens_per_second or 0)
    best = f"{fastest.name}: {format_number(fastest.tokens_per_second)} tokens/s"
    if slowest is fastest:
        return f"{best}."
    return f"Fastest is {best}; slowest is {slowest.name}: {format_number(slowest.tokens_per_second)} tokens/s."
