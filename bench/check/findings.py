"""What a check finds: a verdict for each metric of each recipe, and what they come to."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from lorabench.bench.check.matching import Runs, Work
from lorabench.bench.check.thresholds import Thresholds
from lorabench.bench.records.record import Engine
from lorabench.estimator.recipes.recipe import Recipe

Judgement = Literal["regression", "suspicious", "insufficient", "improvement", "same"]
Metric = Literal[
    "outcome",
    "parameters",
    "peak_allocated_bytes",
    "phase_peaks_bytes",
    "peak_reserved_bytes",
    "nvml_process_peak_bytes",
    "step_seconds",
    "final_loss",
]
VERDICTS: dict[Judgement, str] = {
    "regression": "worse, beyond the threshold and beyond chance",
    "suspicious": "beyond the threshold, but chance could do that: measure more",
    "insufficient": "too little or too unsteady to say anything",
    "improvement": "better, beyond the threshold and beyond chance",
    "same": "within the threshold",
}
"""Worst first."""

EXIT_CODES: dict[Judgement, int] = {"regression": 1, "suspicious": 3, "insufficient": 3, "improvement": 0, "same": 0}
"""0: nothing got worse; 1: something did; 3: that could not be concluded."""
METRICS: dict[Metric, str] = {
    "outcome": "outcome",
    "parameters": "parameters",
    "peak_allocated_bytes": "peak memory",
    "phase_peaks_bytes": "peak",
    "peak_reserved_bytes": "reserved",
    "nvml_process_peak_bytes": "nvidia-smi",
    "step_seconds": "step time",
    "final_loss": "loss, last ¼",
}
"""Each metric as people read it."""

_SEVERITY: dict[Judgement, int] = {verdict: -place for place, verdict in enumerate(VERDICTS)}


class Finding(Struct, frozen=True, kw_only=True):
    """One metric of one recipe, before (baseline or estimate) and after (results)."""

    metric: Metric
    phase: str | None = None
    """Of phase_peaks_bytes: whose peak it is."""
    before: float | str | None
    """Bytes, seconds, mean loss of the last quarter of the steps, or a count; None is a loss that is not finite. For
    outcome, its name."""
    after: float | str | None
    change: float | None = None
    """(after − before) / before; None where that has no meaning."""
    interval: tuple[float, float] | None = None
    """Of ``change``: the 95 % confidence interval; against an estimate, what the estimate allows."""
    p_value: float | None = None
    """Chance of a difference like this, in its direction, in any recipe of the suite, were there none."""
    verdict: Judgement
    reason: str | None = None
    """Why, where the numbers do not say it, in one line."""
    allowed: str | None = None
    """Why it is let pass, where it is (``--allow``)."""

    @property
    def name(self) -> str:
        """The metric, and of which phase, as people read it."""
        return METRICS[self.metric] if self.phase is None else f"{METRICS[self.metric]}, {self.phase}"


class RecipeComparison(Struct, frozen=True, kw_only=True):
    """One recipe that was judged."""

    digest: str
    engine: Engine
    label: str
    """Names it in one printable line, unlike every other label of the comparison."""
    recipe: Recipe
    runs: tuple[int, int]
    """Records before and after; of an estimate there is none."""
    verdict: Judgement
    """The worst of the findings' that are not let pass."""
    findings: tuple[Finding, ...]
    """Worst first."""


class Unmatched(Struct, frozen=True, kw_only=True):
    """A recipe that only one side ran."""

    digest: str
    engine: Engine
    label: str


class Comparison(Struct, frozen=True, kw_only=True):
    """Results held against a baseline or against the estimate."""

    against: Literal["baseline", "estimate"]
    verdict: Judgement
    """The worst that is not let pass; insufficient where no recipe was measured on both sides."""
    device: str | None
    """What the results ran on, and the baseline where it is another; None where no recipe is on both sides."""
    environment_changes: tuple[str, ...]
    """What else differs between the two sides, such as ``torch 2.11.0 → 2.13.0``."""
    thresholds: Thresholds
    run_to_run: float | None
    """Standard deviation of the median step of one run, as a share of it, from repeated runs; None where none tell."""
    recipes: tuple[RecipeComparison, ...]
    """Worst first."""
    only_in_baseline: tuple[Unmatched, ...]
    only_in_results: tuple[Unmatched, ...]
    unused_allowances: tuple[str, ...]
    """Known cases that did not come up."""

    @property
    def counts(self) -> dict[Judgement, int]:
        """Findings that are not let pass, by verdict, worst first."""
        counted = Counter(
            finding.verdict for recipe in self.recipes for finding in recipe.findings if finding.allowed is None
        )
        return {verdict: counted[verdict] for verdict in VERDICTS}

    @property
    def allowed_count(self) -> int:
        """Findings that are let pass."""
        return sum(finding.allowed is not None for recipe in self.recipes for finding in recipe.findings)


def departure(before: float, after: float, tolerance: float) -> Judgement | None:
    """Return what a change beyond ``tolerance`` is, chance aside, where less is better; None within it."""
    if after - before > tolerance * before:
        return "regression"
    return "improvement" if before - after > tolerance * after else None


def weight(finding: Finding) -> tuple[int, float]:
    """Return what to sort findings by: the greater, the worse. What is the same or let pass weighs alike."""
    verdict: Judgement = "same" if finding.allowed is not None else finding.verdict
    if verdict == "same":
        return _SEVERITY["same"], 0.0
    return _SEVERITY[verdict], math.inf if finding.change is None else abs(finding.change)


def worst(findings: Sequence[Finding]) -> Judgement:
    """Return the worst verdict of those that are not let pass."""
    verdicts = [finding.verdict for finding in findings if finding.allowed is None]
    return max(verdicts, key=_SEVERITY.__getitem__, default="same")


def overall(recipes: Iterable[RecipeComparison]) -> Judgement:
    """Return the worst verdict that is not let pass; insufficient where nothing was measured on both sides."""
    findings = [finding for recipe in recipes for finding in recipe.findings]
    verdict = worst(findings)
    if verdict == "same" and not any(map(_concludes, findings)):
        return "insufficient"
    return verdict


def _concludes(finding: Finding) -> bool:
    if finding.allowed is not None or finding.metric != "outcome" or finding.before == "ok":
        return True
    return finding.before != finding.after


def of_recipe(
    work: Work, label: str, before: Runs | None, after: Runs, findings: Sequence[Finding]
) -> RecipeComparison:
    """Return the ``findings`` of one recipe; ``before`` is None against the estimate."""
    return RecipeComparison(
        digest=work.digest,
        engine=work.engine,
        label=label,
        recipe=after.recipe,
        runs=(0 if before is None else len(before.records), len(after.records)),
        verdict=worst(findings),
        findings=tuple(findings),
    )


def in_order(recipes: Iterable[RecipeComparison]) -> tuple[RecipeComparison, ...]:
    """Return ``recipes`` with their findings, each worst first."""
    ordered = []
    for recipe in recipes:
        findings = tuple(sorted(recipe.findings, key=weight, reverse=True))
        ordered.append(replace(recipe, findings=findings, verdict=worst(findings)))
    ordered.sort(key=lambda recipe: recipe.label)
    ordered.sort(key=lambda recipe: weight(recipe.findings[0]), reverse=True)
    return tuple(ordered)
