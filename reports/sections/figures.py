"""Split runs into figures: one model per figure, and few enough runs to fit a printed page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from lorabench.reports.runs import Run, by_model


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
