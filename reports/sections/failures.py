"""Runs that ran out of memory, crashed or hung."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lorabench.reports.runs import Run

OUTCOMES = {"ok": "ok", "oom": "out of memory", "error": "error", "timeout": "timeout"}
"""Outcome → how the page names it."""


def failures(runs: Sequence[Run]) -> dict[str, Any] | None:
    """Return the runs that are not ok."""
    failed = [run for run in runs if run.record.outcome != "ok"]
    return {"runs": failed} if failed else None
