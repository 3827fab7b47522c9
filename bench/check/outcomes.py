"""How the runs of one recipe went, before and after."""

from __future__ import annotations

from collections import Counter

from lorabench.bench.check.findings import Finding, Judgement
from lorabench.bench.check.matching import Runs
from lorabench.bench.check.printable import printable

SETTLED = frozenset({"ok", "oom", "skipped"})
"""Outcomes that are an answer: it trains, it does not fit, or it was known not to."""


def judge_outcome(before: Runs, after: Runs) -> Finding:
    """Return what became of the outcome.

    A side is ok where all its runs are. From ok to anything else is a regression, but to skipped, which says that
    nobody tried.
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
