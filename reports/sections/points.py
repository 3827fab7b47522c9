"""Runs as points in two quantities, and their Pareto front."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from lorabench.reports.runs import Run

Quantity = Callable[[Run], float | None]


def by_method(runs: Iterable[Run], x: Quantity, y: Quantity) -> dict[str, list[tuple[int, float, float]]]:
    """Return method → (run, x, y), for runs that have both values."""
    points: dict[str, list[tuple[int, float, float]]] = {}
    for run in runs:
        across, up = x(run), y(run)
        if across is not None and up is not None:
            points.setdefault(run.method, []).append((run.index, across, up))
    return points


def pareto_front(runs: Iterable[Run], least: Quantity, best: Quantity, *, highest: bool) -> list[Run]:
    """Return the Pareto front: no other run has less of ``least`` and a better ``best``. Sorted by ``least``.

    Args:
        highest: whether a higher ``best`` is better. Of runs with equal values, the first is on the front.
    """
    sign = -1.0 if highest else 1.0
    placed = [
        (low, sign * good, run) for run in runs if (low := least(run)) is not None and (good := best(run)) is not None
    ]
    front: list[Run] = []
    reached = float("inf")
    for _, good, run in sorted(placed, key=lambda place: place[:2]):
        if good < reached:
            front.append(run)
            reached = good
    return front
