"""Shared parts of the charts: figures that fit a page, points in two quantities, and their Pareto front."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from lorabench.reports.runs import Run, by_model

Quantity = Callable[[Run], float | None]


class Figure(NamedTuple):
    """The runs of one chart."""

    model: str
    runs: list[Run]
    lowest: float
    highest: float
    """Lowest and highest value over all runs of the model, so all its figures share one scale."""
    part: str
    """``1 of 3``; empty if one figure shows all runs of the model."""


def figures(runs: Iterable[Run], values: Callable[[Run], Iterable[float]], *, at_most: int) -> Iterator[Figure]:
    """Yield figures of ``at_most`` runs of one model. ``values`` returns the displayed values of a run."""
    for model, of_model in by_model(runs).items():
        shown = [value for run in of_model for value in values(run)]
        lowest, highest = min(shown), max(shown)
        starts = range(0, len(of_model), at_most)
        for number, start in enumerate(starts, 1):
            part = f"{number} of {len(starts)}" if len(starts) > 1 else ""
            yield Figure(model, of_model[start : start + at_most], lowest, highest, part)


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
