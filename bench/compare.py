"""Hold one folder of run records against another: which recipes got worse, better, or stayed the same.

Pure functions: records in, a `Comparison` out. Each recipe that both sides ran is judged by its outcome and, where
both are ok, by three metrics:

- ``peak_allocated_bytes``: the allocator's count is exact and repeats, so a change beyond the tolerance is a change.
- ``tokens_per_second`` at the median timed step: the change must exceed the tolerance, and the step times of the two
  runs must differ by a one-sided Mann–Whitney U test (Mann and Whitney 1947) at `SIGNIFICANCE`, with the p-values of
  all recipes corrected together (Holm 1979), so that a suite of many recipes raises no more false alarms than one.
  The test sees the scatter within the two runs, not what differs from one run to the next: that is the tolerance's.
- ``final_loss``: the mean over the last quarter of the steps.

Comparing A with B says "regression" exactly where comparing B with A says "improvement".
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

from msgspec import Struct

from lorabench.bench.measurements import Measurement
from lorabench.bench.records import RunRecord
from lorabench.estimator.errors import UserError
from lorabench.estimator.recipes import Recipe

Verdict = Literal["regression", "insufficient", "improvement", "same"]
Metric = Literal["outcome", "peak_allocated_bytes", "tokens_per_second", "final_loss"]

SEVERITY: dict[Verdict, int] = {"regression": 3, "insufficient": 2, "improvement": 1, "same": 0}
"""How much a verdict matters to whoever reads the table."""

SIGNIFICANCE = 0.05
"""Chance of calling any recipe of the suite slower when none is, by the step times' scatter alone."""

LEAST_TIMED_STEPS = 5
"""Fewer on either side say nothing about speed."""


class Tolerances(Struct, frozen=True, kw_only=True):
    """Changes for the worse up to these shares of the baseline are no regression."""

    memory: float = 0.005
    speed: float = 0.03
    loss: float = 0.05


class Finding(Struct, frozen=True, kw_only=True):
    """One metric of one recipe, before (baseline) and after (results)."""

    metric: Metric
    before: float | str | None
    """Bytes, tokens per second or mean loss; None is a loss that is not finite. For outcome, its name."""
    after: float | str | None
    change: float | None
    """(after − before) / before; None where that has no meaning."""
    verdict: Verdict
    p_value: float | None = None
    """Of tokens_per_second: chance of a difference like this in its direction were there none, Holm-corrected."""
    reason: str | None = None
    """Why, where the numbers do not say it, in one line."""


class RecipeComparison(Struct, frozen=True, kw_only=True):
    """One recipe that both sides ran."""

    digest: str
    label: str
    """Names the recipe in one printable line, unlike every other label of the comparison."""
    recipe: Recipe
    verdict: Verdict
    """The one of the findings' that matters most."""
    findings: tuple[Finding, ...]
    """Worst first."""


class Unmatched(Struct, frozen=True, kw_only=True):
    """A recipe that only one side ran."""

    digest: str
    label: str


class Comparison(Struct, frozen=True, kw_only=True):
    """Results held against a baseline."""

    verdict: Verdict
    """regression where any finding is; insufficient where none concludes; improvement where any is; or same."""
    device: str | None
    """What both sides ran on; None where no recipe is on both."""
    tolerances: Tolerances
    recipes: tuple[RecipeComparison, ...]
    """Worst first."""
    only_in_baseline: tuple[Unmatched, ...]
    only_in_results: tuple[Unmatched, ...]

    @property
    def exit_code(self) -> int:
        """0: nothing got worse; 1: something did; 3: nothing could be concluded."""
        return {"regression": 1, "insufficient": 3, "improvement": 0, "same": 0}[self.verdict]

    @property
    def counts(self) -> dict[Verdict, int]:
        """Findings by verdict, worst first."""
        counted = Counter(finding.verdict for recipe in self.recipes for finding in recipe.findings)
        return {verdict: counted[verdict] for verdict in SEVERITY}


def compare(
    results: Sequence[RunRecord], baseline: Sequence[RunRecord], tolerances: Tolerances | None = None
) -> Comparison:
    """Compare ``results`` (after) with ``baseline`` (before), recipe by recipe.

    Raises:
        UserError: a side holds one recipe twice, a recipe ran on different devices on the two sides, or scipy, which
            the test needs, is not installed.
    """
    tolerances = tolerances or Tolerances()
    after, before = _by_digest(results, "the results"), _by_digest(baseline, "the baseline")
    labels = _labels({**before, **after})
    matched = {digest: (before[digest], after[digest]) for digest in before if digest in after}
    devices = [_one_device(labels[digest], *pair) for digest, pair in matched.items()]
    speeds = _judge_speeds(
        {
            digest: (old.measurement, new.measurement)
            for digest, (old, new) in matched.items()
            if old.measurement and new.measurement
        },
        tolerances.speed,
    )
    recipes = []
    for digest, (old, new) in matched.items():
        if old.measurement and new.measurement:
            findings = [
                _judge_memory(old.measurement, new.measurement, tolerances.memory),
                speeds[digest],
                _judge_loss(old.measurement, new.measurement, tolerances.loss),
            ]
        else:
            findings = [_judge_outcome(old, new)]
        findings.sort(key=weight, reverse=True)
        recipes.append(
            RecipeComparison(
                digest=digest,
                label=labels[digest],
                recipe=new.recipe,
                verdict=findings[0].verdict,
                findings=tuple(findings),
            )
        )
    recipes.sort(key=lambda recipe: recipe.label)
    recipes.sort(key=lambda recipe: weight(recipe.findings[0]), reverse=True)
    return Comparison(
        verdict=_overall([finding.verdict for recipe in recipes for finding in recipe.findings]),
        device=", ".join(sorted(set(devices))) or None,
        tolerances=tolerances,
        recipes=tuple(recipes),
        only_in_baseline=tuple(Unmatched(digest=one, label=labels[one]) for one in before if one not in after),
        only_in_results=tuple(Unmatched(digest=one, label=labels[one]) for one in after if one not in before),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values, in their order, corrected for being a family of tests.

    Sorted ascending, the k-th of m (from 0) is multiplied by m − k, and none is less than the one before it.
    Source: S. Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6 (1979), 65–70.
    """
    corrected = [1.0] * len(p_values)
    floor = 0.0
    for k, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        floor = max(floor, min(1.0, p_values[index] * (len(p_values) - k)))
        corrected[index] = floor
    return corrected


def final_loss(losses: Sequence[float | None]) -> float | None:
    """Return the mean of the last quarter of ``losses`` (one at least), or None where one there is not finite."""
    last = losses[-max(1, len(losses) // 4) :]
    finite = [loss for loss in last if loss is not None and math.isfinite(loss)]
    return math.fsum(finite) / len(finite) if finite and len(finite) == len(last) else None


def printable(text: str) -> str:
    """Return ``text`` as one line that no terminal, XML or log takes for a command."""
    return "".join(char if char.isprintable() else "�" for char in " ".join(text.split()))


def _by_digest(records: Iterable[RunRecord], side: str) -> dict[str, RunRecord]:
    found: dict[str, RunRecord] = {}
    for record in records:
        if record.digest in found:
            raise UserError(
                f"{side}: two records of recipe {record.digest} ({printable(record.recipe.label())}): remove one"
            )
        found[record.digest] = record
    return found


def _labels(records: dict[str, RunRecord]) -> dict[str, str]:
    """Name each recipe by its label, with the settings that tell apart those of the same label."""
    alike: dict[str, list[str]] = {}
    for digest, record in records.items():
        alike.setdefault(printable(record.recipe.label()), []).append(digest)
    names: dict[str, str] = {}
    for label, digests in alike.items():
        settings = {digest: records[digest].recipe.describe() for digest in digests}
        differing = [
            key
            for key in Recipe.__struct_fields__
            if key != "model" and len({said.get(key) for said in settings.values()}) > 1
        ]
        told = {
            digest: " ".join([label, *(f"{key}={said[key]}" for key in differing if key in said)])
            for digest, said in settings.items()
        }
        taken = Counter(told.values())
        names |= {digest: name if taken[name] == 1 else f"{name} {digest}" for digest, name in told.items()}
    return {digest: printable(names[digest]) for digest in records}


def _one_device(label: str, before: RunRecord, after: RunRecord) -> str:
    if (before.device.kind, before.device.name) != (after.device.kind, after.device.name):
        raise UserError(
            f"{label}: the baseline ran on {printable(before.device.name)} ({before.device.kind}), the results on "
            f"{printable(after.device.name)} ({after.device.kind}): run both on one device, or compare with a "
            "baseline of this one"
        )
    return printable(after.device.name)


def _overall(verdicts: Sequence[Verdict]) -> Verdict:
    concluded = [verdict for verdict in verdicts if verdict != "insufficient"]
    return max(concluded, key=SEVERITY.__getitem__, default="insufficient")


def weight(finding: Finding) -> tuple[int, float]:
    """Return what to sort findings by: the greater, the more it matters. What stayed the same matters alike."""
    if finding.verdict == "same":
        return SEVERITY["same"], 0.0
    return SEVERITY[finding.verdict], math.inf if finding.change is None else abs(finding.change)


def _change(before: float, after: float) -> float | None:
    return (after - before) / before if before else (0.0 if after == before else None)


def _rises(before: float, after: float, tolerance: float) -> bool:
    return after - before > tolerance * before


def _drops(before: float, after: float, tolerance: float) -> bool:
    return before - after > tolerance * before


def _judge_outcome(before: RunRecord, after: RunRecord) -> Finding:
    said = after if after.outcome != "ok" else before
    verdict: Verdict = "insufficient"
    if before.outcome == "ok":
        verdict = "regression"
    elif after.outcome == "ok":
        verdict = "improvement"
    return Finding(
        metric="outcome",
        before=before.outcome,
        after=after.outcome,
        change=None,
        verdict=verdict,
        reason=printable(said.message) if said.message else None,
    )


def _judge_memory(before: Measurement, after: Measurement, tolerance: float) -> Finding:
    old, new = before.memory.peak_allocated_bytes, after.memory.peak_allocated_bytes
    verdict: Verdict = "same"
    if _rises(old, new, tolerance):
        verdict = "regression"
    elif _rises(new, old, tolerance):
        verdict = "improvement"
    return Finding(metric="peak_allocated_bytes", before=old, after=new, change=_change(old, new), verdict=verdict)


def _judge_loss(before: Measurement, after: Measurement, tolerance: float) -> Finding:
    old, new = final_loss(before.losses), final_loss(after.losses)
    steps = len(before.losses), len(after.losses)
    verdict: Verdict = "same"
    reason = None
    if steps[0] != steps[1] or not steps[0]:
        verdict, reason = "insufficient", f"trained {steps[0]} steps before and {steps[1]} after: train as many"
    elif old is None or new is None:
        if old != new:
            verdict = "regression" if new is None else "improvement"
        reason = "the loss is not finite " + (
            "before and after" if old == new else "after" if new is None else "before"
        )
    elif _rises(old, new, tolerance):
        verdict = "regression"
    elif _rises(new, old, tolerance):
        verdict = "improvement"
    change = None if old is None or new is None else _change(old, new)
    return Finding(metric="final_loss", before=old, after=new, change=change, verdict=verdict, reason=reason)


def _judge_speeds(pairs: dict[str, tuple[Measurement, Measurement]], tolerance: float) -> dict[str, Finding]:
    """Judge the speeds of all recipes together: their tests are one family in each direction."""
    tested = [
        digest
        for digest, (old, new) in pairs.items()
        if min(len(old.step_seconds), len(new.step_seconds)) >= LEAST_TIMED_STEPS
    ]
    times = {digest: (old.step_seconds, new.step_seconds) for digest, (old, new) in pairs.items()}
    slower = dict(zip(tested, holm([_p_greater(times[d][1], times[d][0]) for d in tested]), strict=True))
    faster = dict(zip(tested, holm([_p_greater(times[d][0], times[d][1]) for d in tested]), strict=True))
    findings = {}
    for digest, (old, new) in pairs.items():
        before, after = old.tokens_per_second, new.tokens_per_second
        verdict: Verdict = "same"
        reason = p_value = None
        if digest not in slower:
            verdict = "insufficient"
            reason = (
                f"{len(old.step_seconds)} timed steps before and {len(new.step_seconds)} after: "
                f"{LEAST_TIMED_STEPS} of each are needed"
            )
        else:
            p_value = slower[digest] if after <= before else faster[digest]
            if p_value <= SIGNIFICANCE:
                if _drops(before, after, tolerance):
                    verdict = "regression"
                elif _drops(after, before, tolerance):
                    verdict = "improvement"
            elif _drops(before, after, tolerance) or _drops(after, before, tolerance):
                if _least_p(*map(len, times[digest])) * len(tested) > SIGNIFICANCE:
                    verdict = "insufficient"
                    reason = f"too few timed steps to tell a change in a suite of {len(tested)} from chance: run more"
                else:
                    reason = f"within the scatter of the step times (p = {p_value:.2g})"
        findings[digest] = Finding(
            metric="tokens_per_second",
            before=before,
            after=after,
            change=_change(before, after),
            verdict=verdict,
            p_value=p_value,
            reason=reason,
        )
    return findings


def _p_greater(these: Sequence[float], those: Sequence[float]) -> float:
    """Return the one-sided Mann–Whitney p-value for ``these`` tending to be greater than ``those``."""
    try:
        from scipy.stats import mannwhitneyu
    except ImportError as error:
        raise UserError("check needs scipy, which is missing: pip install 'lorabench[check]'") from error
    return float(mannwhitneyu(these, those, alternative="greater").pvalue)


def _least_p(before: int, after: int) -> float:
    """Return the least p-value that samples of these sizes can have: every step of one slower than all of the other."""
    return _p_greater(range(before, before + after), range(before))
