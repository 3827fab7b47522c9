"""The result of a check: a verdict for each metric of each recipe, and the overall verdict."""

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
    "suspicious": "beyond the threshold, but possibly by chance: measure more",
    "insufficient": "too few or too noisy runs for a conclusion",
    "improvement": "better, beyond the threshold and beyond chance",
    "same": "within the threshold",
}
"""Worst first."""

EXIT_CODES: dict[Judgement, int] = {"regression": 1, "suspicious": 3, "insufficient": 3, "improvement": 0, "same": 0}
"""0: nothing got worse; 1: something got worse; 3: inconclusive."""
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
"""Metric → its name in the output."""

_SEVERITY: dict[Judgement, int] = {verdict: -place for place, verdict in enumerate(VERDICTS)}


class Finding(Struct, frozen=True, kw_only=True):
    """One metric of one recipe, before (baseline or estimate) and after (results)."""

    metric: Metric
    phase: str | None = None
    """The phase, if the metric is phase_peaks_bytes."""
    before: float | str | None
    """Bytes, seconds, mean loss of the last quarter of the steps, or a count; None is a loss that is not finite. The
    metric ``outcome`` has the outcome's name."""
    after: float | str | None
    change: float | None = None
    """(after − before) / before; None if it is undefined."""
    interval: tuple[float, float] | None = None
    """The 95 % confidence interval of ``change``; against an estimate, the range that the estimate allows."""
    p_value: float | None = None
    """p-value of ``change`` in its direction, corrected over all recipes of the suite."""
    verdict: Judgement
    reason: str | None = None
    """The reason in one line, if the numbers alone do not show it."""
    allowed: str | None = None
    """The reason given by ``--allow``, if the finding is allowed."""

    @property
    def name(self) -> str:
        """The metric's name in the output, with its phase."""
        return METRICS[self.metric] if self.phase is None else f"{METRICS[self.metric]}, {self.phase}"


class RecipeComparison(Struct, frozen=True, kw_only=True):
    """The findings of one recipe."""

    digest: str
    engine: Engine
    label: str
    """One printable line, unique in the comparison."""
    recipe: Recipe
    runs: tuple[int, int]
    """Number of records before and after; 0 before if compared with the estimate."""
    verdict: Judgement
    """The worst verdict of the findings that are not allowed."""
    findings: tuple[Finding, ...]
    """Worst first."""


class Unmatched(Struct, frozen=True, kw_only=True):
    """A recipe that only one side ran."""

    digest: str
    engine: Engine
    label: str


class Comparison(Struct, frozen=True, kw_only=True):
    """Results compared with a baseline or with the estimate."""

    against: Literal["baseline", "estimate"]
    verdict: Judgement
    """The worst verdict that is not allowed; ``insufficient`` if no recipe was measured on both sides."""
    device: str | None
    """The device of the results, and of the baseline if it differs; None if no recipe is on both sides."""
    environment_changes: tuple[str, ...]
    """Differences between the environments of the two sides, such as ``torch 2.11.0 → 2.13.0``."""
    thresholds: Thresholds
    run_to_run: float | None
    """Standard deviation between runs of a run's median step, as a share of it; None without repeated runs."""
    recipes: tuple[RecipeComparison, ...]
    """Worst first."""
    only_in_baseline: tuple[Unmatched, ...]
    only_in_results: tuple[Unmatched, ...]
    unused_waivers: tuple[str, ...]
    """``--allow`` options that matched no finding."""
    rehearsed: bool = False
    """Whether the results were rehearsed on a null GPU. Then only memory is compared."""

    @property
    def counts(self) -> dict[Judgement, int]:
        """Number of findings that are not allowed, by verdict, worst first."""
        counted = Counter(
            finding.verdict for recipe in self.recipes for finding in recipe.findings if finding.allowed is None
        )
        return {verdict: counted[verdict] for verdict in VERDICTS}

    @property
    def allowed_count(self) -> int:
        """Number of allowed findings."""
        return sum(finding.allowed is not None for recipe in self.recipes for finding in recipe.findings)


def departure(before: float, after: float, tolerance: float) -> Judgement | None:
    """Return the verdict of a change beyond ``tolerance``, ignoring chance; None within it. Less is better."""
    if after - before > tolerance * before:
        return "regression"
    return "improvement" if before - after > tolerance * after else None


def weight(finding: Finding) -> tuple[int, float]:
    """Return the sort key of a finding: greater is worse. ``same`` and allowed findings are equal."""
    verdict: Judgement = "same" if finding.allowed is not None else finding.verdict
    if verdict == "same":
        return _SEVERITY["same"], 0.0
    return _SEVERITY[verdict], math.inf if finding.change is None else abs(finding.change)


def worst(findings: Sequence[Finding]) -> Judgement:
    """Return the worst verdict of the findings that are not allowed."""
    verdicts = [finding.verdict for finding in findings if finding.allowed is None]
    return max(verdicts, key=_SEVERITY.__getitem__, default="same")


def overall(recipes: Iterable[RecipeComparison]) -> Judgement:
    """Return the worst verdict that is not allowed; ``insufficient`` if nothing was measured on both sides."""
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
    """Return the ``findings`` of one recipe; ``before`` is None if compared with the estimate."""
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
    """Return ``recipes`` worst first, each with its findings worst first."""
    ordered = []
    for recipe in recipes:
        findings = tuple(sorted(recipe.findings, key=weight, reverse=True))
        ordered.append(replace(recipe, findings=findings, verdict=worst(findings)))
    ordered.sort(key=lambda recipe: recipe.label)
    ordered.sort(key=lambda recipe: weight(recipe.findings[0]), reverse=True)
    return tuple(ordered)
