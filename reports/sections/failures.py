"""Runs that ran out of memory, failed, timed out or were skipped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lorabench.reports.runs import Run

OUTCOMES = {"ok": "ok", "oom": "out of memory", "error": "error", "timeout": "timeout", "skipped": "skipped"}
"""Outcome → its name on the page."""
OUT_OF = {"device": "of the GPU", "host": "of the host", "killed": "of the host; killed by the kernel"}
"""``out_of`` → its text on the page."""


def failures(runs: Sequence[Run]) -> dict[str, Any] | None:
    """Return the runs that are not ok."""
    failed = [run for run in runs if run.record.outcome != "ok"]
    return {"runs": failed, "out_of": OUT_OF} if failed else None
