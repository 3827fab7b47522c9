"""The report's sections. Each is a function from the page's subject to the data of its template of the same name.

A section without data returns None and is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from lorabench.reports.runs import Run
from lorabench.reports.sections.accuracy import accuracy
from lorabench.reports.sections.claims import claims
from lorabench.reports.sections.comparison import comparison
from lorabench.reports.sections.environments import environments
from lorabench.reports.sections.failures import failures
from lorabench.reports.sections.fits import fits
from lorabench.reports.sections.learning import learning
from lorabench.reports.sections.memory import memory
from lorabench.reports.sections.records import records
from lorabench.reports.sections.speed import speed
from lorabench.reports.sections.summary import summary
from lorabench.reports.sections.what_if import what_if
from lorabench.reports.subject import Subject


class Section(NamedTuple):
    """One part of the page."""

    name: str
    """Anchor of the section, and name of its template ``templates/NAME.html``."""
    title: str
    data: Callable[[Subject], dict[str, Any] | None]
    """Makes the template's variable ``data``."""
    scripts: tuple[str, ...] = ()
    """Scripts in ``js/`` that draw its charts and handle its controls."""


def _of_runs(show: Callable[[Sequence[Run]], dict[str, Any] | None]) -> Callable[[Subject], dict[str, Any] | None]:
    """Return a section that needs runs, and is left out without them."""
    return lambda subject: show(subject.runs) if subject.runs else None


SECTIONS = (
    Section("summary", "Summary", summary),
    Section("accuracy", "Estimated and measured", _of_runs(accuracy), ("scatter", "distribution")),
    Section("memory", "Where the bytes go", _of_runs(memory), ("memory", "detail")),
    Section("speed", "Speed", _of_runs(speed), ("speed", "scatter")),
    Section("learning", "Learning", _of_runs(learning), ("learning", "scatter")),
    Section("comparison", "Side by side", _of_runs(comparison), ("scatter",)),
    Section("fits", "What fits", fits, ("expressions", "estimates", "fits")),
    Section("what_if", "What if", what_if, ("expressions", "estimates", "what_if")),
    Section("claims", "Claims", claims),
    Section("failures", "Failures", _of_runs(failures)),
    Section("environments", "Environment", _of_runs(environments)),
    Section("records", "All runs", _of_runs(records), ("run_table",)),
)
"""Sections in the order of the page."""
