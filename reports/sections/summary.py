"""The top of the page: what ran, where, and the headline figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from lorabench.reports.quantities import format_date
from lorabench.reports.runs import Run
from lorabench.reports.sections.environments import differing_facts
from lorabench.reports.sections.failures import outcome_of
from lorabench.reports.sections.headlines import estimated, measured
from lorabench.reports.subject import Subject


def summary(subject: Subject) -> dict[str, Any]:
    """Return the headline figures, and a summary of the runs if there are any."""
    runs = subject.runs
    return {
        "headlines": [*measured(runs), *estimated(subject)],
        "runs": _of_runs(runs) if runs else None,
    }


def _of_runs(runs: Sequence[Run]) -> dict[str, Any]:
    """Return what the runs have in common, counts by outcome, and warnings."""
    started = sorted(run.record.started_at for run in runs)
    first, last = format_date(started[0]), format_date(started[-1])
    outcomes = Counter((run.record.outcome, outcome_of(run)) for run in runs)
    return {
        "devices": list(dict.fromkeys(run.record.device for run in runs)),
        "suites": list(dict.fromkeys(run.record.suite for run in runs)),
        "models": list(dict.fromkeys(run.model for run in runs)),
        "started": f"{first} UTC" if first == last else f"{first} to {last} UTC",
        "count": len(runs),
        "outcomes": [(outcome, name, count) for (outcome, name), count in outcomes.most_common()],
        "differing": differing_facts(runs),
        "unstable": sum(bool(run.unstable) for run in runs),
        "timed": sum(run.timed is not None for run in runs),
        "failed": sum(run.record.outcome not in ("ok", "skipped") for run in runs),
    }
