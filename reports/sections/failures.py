"""Runs that ran out of memory, failed, timed out or were skipped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lorabench.reports.runs import Run

OUTCOMES = {"ok": "ok", "oom": "out of memory", "error": "error", "timeout": "timeout", "skipped": "skipped"}
"""Outcome → its name on the page."""

OUT_OF = {"device": "of the GPU", "host": "of the host", "killed": "of the host; killed by the kernel"}
"""``out_of`` → its text on the page."""


def outcome_of(run: Run) -> str:
    """Return the name of a run's outcome, with a note if it was rehearsed."""
    name = OUTCOMES[run.record.outcome]
    if not run.record.rehearsed:
        return name
    return "rehearsed" if run.record.outcome == "ok" else f"{name}, rehearsed"


def failures(runs: Sequence[Run]) -> dict[str, Any] | None:
    """Return the runs that are not ok."""
    failed = [run for run in runs if run.record.outcome != "ok"]
    return {"runs": failed, "out_of": OUT_OF} if failed else None
