"""Persistent memory of recipes, term by term: 16P for full, 2P + 16·P_lora for LoRA, 4-bit weights for QLoRA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lorabench.estimator.errors import UserError
from lorabench.estimator.memory.states import states
from lorabench.estimator.models.read_config import MODEL_TYPES, read_config
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.reports.runs import Run


class Persistent(NamedTuple):
    """Weights, adapters, gradients and optimizer states of one run's recipe."""

    run: Run
    bytes: int
    per_parameter: float
    """Bytes per parameter of the model."""
    terms: tuple[str, ...]


def persistent_memory(runs: Sequence[Run]) -> list[Persistent]:
    """Return the persistent memory of the first run of each model and method."""
    first: dict[tuple[str, str], Run] = {}
    for run in runs:
        first.setdefault((run.model, run.method), run)
    return [found for run in first.values() if (found := _persistent(run))]


def _persistent(run: Run) -> Persistent | None:
    """Return the persistent memory of a run; None if its model has no closed form."""
    record = run.record
    if record.model_config.get("model_type") not in MODEL_TYPES:
        return None
    try:
        spec = read_config(record.model_config, record.recipe.model)
        terms = states(ResolvedRecipe(spec, record.recipe), record.device.backend).terms
    except UserError:
        return None
    total = sum(term.bytes for term in terms)
    written = tuple(f"{term.bytes_per_element:.3g} B × {term.elements:,} ({term.what})" for term in terms)
    return Persistent(run, total, total / spec.parameters, written)
