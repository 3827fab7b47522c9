"""Verdicts where they are hardest: recipes that need within 5 % of a GPU's memory, each compared with its rehearsal.

The records are drawn and rehearsed by `benchmarks/boundary.py`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from lorabench.bench.records.record import read_record
from lorabench.estimator.closed_form.replay import Training
from lorabench.estimator.models.read_config import read_config
from lorabench.estimator.recipes.resolved import ResolvedRecipe

RECORDS = sorted((Path(__file__).parent / "boundary").rglob("*.record.json"))


@cache
def verdicts() -> dict[str, tuple[bool, bool]]:
    """Return whether each recipe is said to fit, and whether it ran."""
    found = {}
    for path in RECORDS:
        record = read_record(path)
        device = record.device.catalogued
        assert device is not None
        assert record.outcome in ("ok", "oom")
        resolved = ResolvedRecipe(read_config(record.model_config, record.recipe.model), record.recipe)
        training = Training(resolved, device.compute_capability, device.multiprocessors)
        fits = training.replay(capacity=device.usable_bytes).out_of_memory is None
        found[f"{device.name} {record.recipe.describe()}"] = fits, record.outcome == "ok"
    return found


def test_recipes_on_both_sides_of_the_boundary_are_there() -> None:
    ran = [ran for _, ran in verdicts().values()]
    assert len(ran) >= 60
    assert 0.3 <= sum(ran) / len(ran) <= 0.7


def test_verdicts_are_right() -> None:
    wrong = {recipe: verdict for recipe, verdict in verdicts().items() if len(set(verdict)) > 1}
    assert len(wrong) <= 0.02 * len(verdicts()), wrong
    assert not any(fits for fits, _ in wrong.values()), wrong
