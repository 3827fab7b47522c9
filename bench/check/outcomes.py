"""Compare the outcomes of one recipe before and after."""

from __future__ import annotations

from collections import Counter

from lorabench.bench.check.findings import Finding, Judgement
from lorabench.bench.check.matching import Runs
from lorabench.estimator.foreign_text import printable

SETTLED = frozenset({"ok", "oom", "skipped"})
"""Outcomes that answer whether a recipe trains: yes, out of memory, or predicted not to fit."""


def judge_outcome(before: Runs, after: Runs) -> Finding:
    """Return the finding on the outcome.

    A side is ok if all its runs are. From ok to anything else is a regression, except to skipped: then nobody tried.
    """
    old, new = before.outcomes, after.outcomes
    verdict: Judgement = "insufficient"
    if old == new and len(new) == 1 and new <= SETTLED:
        verdict = "same"
    elif old == {"ok"} and new != {"ok"}:
        verdict = "insufficient" if new <= {"ok", "skipped"} else "regression"
    elif new == {"ok"}:
        verdict = "insufficient" if old <= {"ok", "skipped"} else "improvement"
    said = after if new != {"ok"} else before
    reasons = [record.message for record in said.records if record.outcome != "ok" and record.message]
    return Finding(
        metric="outcome",
        before=_said(before),
        after=_said(after),
        verdict=verdict,
        reason=printable(reasons[0]) if reasons else None,
    )


def _said(runs: Runs) -> str:
    counts = Counter(record.outcome for record in runs.records)
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())
