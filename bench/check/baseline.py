"""Compare one folder of run records with another: which recipes got worse, better, or stayed the same.

Pure functions: records in, a `Comparison` out. Comparing A with B reports a regression exactly if comparing B with A
reports an improvement.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lorabench.bench.check.findings import Comparison, Unmatched, in_order, of_recipe, overall
from lorabench.bench.check.loss import judge_losses
from lorabench.bench.check.matching import Work, device_of, environment_changes, labels_of, refuse_unlike, runs_by_work
from lorabench.bench.check.memory import judge_memory
from lorabench.bench.check.outcomes import judge_outcome
from lorabench.bench.check.speed import judge_speeds
from lorabench.bench.check.thresholds import Thresholds
from lorabench.bench.records.record import RunRecord


def compare(
    results: Sequence[RunRecord],
    baseline: Sequence[RunRecord],
    thresholds: Thresholds | None = None,
    *,
    across_devices: bool = False,
) -> Comparison:
    """Compare ``results`` (after) with ``baseline`` (before), recipe by recipe.

    Raises:
        UserError: one side holds the same repeat of a recipe twice; one side was rehearsed; a recipe ran on different
            devices and ``across_devices`` is false; or scipy is not installed.
    """
    thresholds = thresholds or Thresholds()
    before, after = runs_by_work(baseline, "the baseline"), runs_by_work(results, "the results")
    refuse_unlike(baseline, results)
    labels = labels_of((before, after))
    matched = {work: (before[work], after[work]) for work in before if work in after}
    devices = {device_of(labels[work], *pair, across_devices=across_devices) for work, pair in matched.items()}
    measured = {work: pair for work, pair in matched.items() if pair[0].measurements and pair[1].measurements}
    findings = {
        work: judge_memory(old.counted, new.counted, thresholds)
        for work, (old, new) in matched.items()
        if old.counted and new.counted
    }
    spread = None
    if thresholds.speed is not None:
        speeds, spread = judge_speeds(
            {work: (old.measurements, new.measurements) for work, (old, new) in measured.items()}, thresholds.speed
        )
        for work, finding in speeds.items():
            findings[work].append(finding)
    for work, finding in judge_losses(measured, thresholds).items():
        findings[work].append(finding)
    recipes = []
    for work, (old, new) in matched.items():
        outcome = judge_outcome(old, new)
        judged = findings.get(work, [])
        if not judged or outcome.before != "ok" or outcome.after != "ok":
            judged = [outcome, *judged]
        recipes.append(of_recipe(work, labels[work], old, new, judged))
    return Comparison(
        against="baseline",
        verdict=overall(recipes),
        device=", ".join(sorted(devices)) or None,
        environment_changes=environment_changes(
            [record for old, _ in matched.values() for record in old.records],
            [record for _, new in matched.values() for record in new.records],
        ),
        thresholds=thresholds,
        run_to_run=spread,
        recipes=in_order(recipes),
        only_in_baseline=_unmatched([work for work in before if work not in after], labels),
        only_in_results=_unmatched([work for work in after if work not in before], labels),
        unused_waivers=(),
        rehearsed=any(record.rehearsed for record in results),
    )


def _unmatched(works: Iterable[Work], labels: dict[Work, str]) -> tuple[Unmatched, ...]:
    return tuple(Unmatched(digest=work.digest, engine=work.engine, label=labels[work]) for work in works)
