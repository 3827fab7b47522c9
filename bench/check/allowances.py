"""Known cases: findings that are let pass, with the reason that somebody gave."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from lorabench.bench.check.findings import METRICS, Comparison, Finding, RecipeComparison, in_order, overall
from lorabench.bench.check.printable import printable
from lorabench.estimator.errors import UserError, did_you_mean


class Allowance(Struct, frozen=True):
    """Findings that are let pass."""

    name: str
    """A recipe's label or digest, a metric, or both with a colon between."""
    reason: str


def read_allowance(text: str, comparison: Comparison) -> Allowance:
    """Return the allowance that ``NAME=REASON`` stands for; NAME may hold ``=``, as labels do.

    Raises:
        UserError: no reason, or no recipe or metric of the comparison has that name.
    """
    names = {name for recipe in comparison.recipes for name in _names_of(recipe)} | set(METRICS)
    known = [name for name in names if text == name or text.startswith(f"{name}=")]
    if not known:
        name = text.rpartition("=")[0] or text
        raise UserError(
            f"--allow {text!r}: write NAME=REASON with a recipe's label or digest, a metric, or LABEL:METRIC as NAME; "
            f"of {printable(name)!r}: {did_you_mean(name, names)}"
        )
    name = max(known, key=len)
    reason = printable(text[len(name) + 1 :])
    if not reason:
        raise UserError(f"--allow {text!r}: give a reason: {name}=REASON")
    return Allowance(name, reason)


def allow(comparison: Comparison, allowances: Sequence[Allowance]) -> Comparison:
    """Return ``comparison`` with what ``allowances`` name let pass: regressions, and what is suspicious or open."""
    used: set[str] = set()

    def allowed(recipe: RecipeComparison, finding: Finding) -> Finding:
        if finding.verdict in ("same", "improvement"):
            return finding
        names = {recipe.label, recipe.digest, finding.metric}
        names |= {f"{name}:{finding.metric}" for name in (recipe.label, recipe.digest)}
        for allowance in allowances:
            if allowance.name in names:
                used.add(allowance.name)
                return replace(finding, allowed=allowance.reason)
        return finding

    recipes = [
        replace(recipe, findings=tuple(allowed(recipe, finding) for finding in recipe.findings))
        for recipe in comparison.recipes
    ]
    return replace(
        comparison,
        recipes=in_order(recipes),
        verdict=overall(recipes),
        unused_allowances=tuple(f"{one.name}={one.reason}" for one in allowances if one.name not in used),
    )


def _names_of(recipe: RecipeComparison) -> list[str]:
    names = [recipe.label, recipe.digest]
    return names + [f"{name}:{metric}" for name in names for metric in METRICS]
