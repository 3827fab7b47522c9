"""Waivers: findings that ``--allow NAME=REASON`` lets pass."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from lorabench.bench.check.findings import METRICS, Comparison, Finding, RecipeComparison, in_order, overall
from lorabench.estimator.errors import UserError, did_you_mean
from lorabench.estimator.foreign_text import printable, quoted


class Waiver(Struct, frozen=True):
    """One ``--allow`` option."""

    name: str
    """A recipe's label or digest, a metric, or both joined by a colon."""
    reason: str


def read_waiver(text: str, comparison: Comparison) -> Waiver:
    """Return the waiver ``NAME=REASON``. NAME may contain ``=``, since labels do.

    Raises:
        UserError: the reason is missing, or no recipe or metric of the comparison has that name.
    """
    by_label = {name for recipe in comparison.recipes for name in _with_metrics(recipe.label)} | set(METRICS)
    by_digest = {name for recipe in comparison.recipes for name in _with_metrics(recipe.digest)}
    known = [name for name in by_label | by_digest if text == name or text.startswith(f"{name}=")]
    if not known:
        name = text.rpartition("=")[0] or text
        raise UserError(
            f"--allow {quoted(text)}: write NAME=REASON; NAME is a recipe's label or digest, a metric, or "
            f"LABEL:METRIC; nothing is named {quoted(name)}: {did_you_mean(name, by_label)}"
        )
    name = max(known, key=len)
    reason = printable(text[len(name) + 1 :])
    if not reason:
        raise UserError(f"--allow {quoted(text)}: give a reason: {name}=REASON")
    return Waiver(name, reason)


def waive(comparison: Comparison, waivers: Sequence[Waiver]) -> Comparison:
    """Return ``comparison`` with its regressions and inconclusive findings waived if ``waivers`` name them."""
    used: set[str] = set()

    def waived(recipe: RecipeComparison, finding: Finding) -> Finding:
        if finding.verdict in ("same", "improvement"):
            return finding
        names = {recipe.label, recipe.digest, finding.metric}
        names |= {f"{name}:{finding.metric}" for name in (recipe.label, recipe.digest)}
        for waiver in waivers:
            if waiver.name in names:
                used.add(waiver.name)
                return replace(finding, allowed=waiver.reason)
        return finding

    recipes = [
        replace(recipe, findings=tuple(waived(recipe, finding) for finding in recipe.findings))
        for recipe in comparison.recipes
    ]
    return replace(
        comparison,
        recipes=in_order(recipes),
        verdict=overall(recipes),
        unused_waivers=tuple(f"{one.name}={one.reason}" for one in waivers if one.name not in used),
    )


def _with_metrics(name: str) -> list[str]:
    return [name, *(f"{name}:{metric}" for metric in METRICS)]
