"""The report's sections: each is a function from runs to what its template of the same name shows.

A section that has nothing to show returns None and is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from lorabench.reports.runs import Run
from lorabench.reports.sections.accuracy import accuracy
from lorabench.reports.sections.comparison import comparison
from lorabench.reports.sections.environments import environments
from lorabench.reports.sections.failures import failures
from lorabench.reports.sections.learning import learning
from lorabench.reports.sections.memory import memory
from lorabench.reports.sections.records import records
from lorabench.reports.sections.speed import speed
from lorabench.reports.sections.summary import summary


class Section(NamedTuple):
    """One part of the page."""

    name: str
    """Its anchor, and its template ``templates/NAME.html``."""
    title: str
    data: Callable[[Sequence[Run]], dict[str, Any] | None]
    """What its template sees as ``data``."""
    scripts: tuple[str, ...] = ()
    """Of ``js/``: its own, which draw its charts and listen to its controls."""


SECTIONS = (
    Section("summary", "Summary", summary),
    Section("accuracy", "Predicted against measured", accuracy, ("scatter", "distribution")),
    Section("memory", "Where the bytes go", memory, ("memory", "closely")),
    Section("speed", "Speed", speed, ("speed", "scatter")),
    Section("learning", "Learning", learning, ("learning", "scatter")),
    Section("comparison", "Side by side", comparison, ("scatter",)),
    Section("failures", "Failures", failures),
    Section("environments", "Environment", environments),
    Section("records", "All runs", records, ("run_table",)),
)
"""In the order of the page."""
