"""Runs split into figures: one model each, and few enough runs for one figure to fit a printed page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from lorabench.reports.runs import Run, by_model


class Figure(NamedTuple):
    """The runs that one chart shows."""

    model: str
    runs: list[Run]
    of_model: Sequence[Run]
    """All runs of the model, so that the model's figures share their scale."""
    part: str
    """``1 of 3``, or empty where one figure holds all runs of the model."""


def figures(runs: Iterable[Run], *, at_most: int) -> Iterator[Figure]:
    """Yield figures of ``at_most`` runs of one model."""
    for model, of_model in by_model(runs).items():
        starts = range(0, len(of_model), at_most)
        for number, start in enumerate(starts, 1):
            part = f"{number} of {len(starts)}" if len(starts) > 1 else ""
            yield Figure(model, of_model[start : start + at_most], of_model, part)
