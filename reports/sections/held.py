"""What recipes hold for the whole training, term by term: 16P against 2P + 16·P_lora against 4-bit weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lorabench.estimator.errors import UserError
from lorabench.estimator.memory.states import states
from lorabench.estimator.models.read_config import MODEL_TYPES, read_config
from lorabench.reports.runs import Run


class Held(NamedTuple):
    """Weights, adapters, gradients and optimizer states of one run's recipe."""

    run: Run
    bytes: int
    per_parameter: float
    """Bytes for each parameter of the model."""
    terms: tuple[str, ...]


def held(runs: Sequence[Run]) -> list[Held]:
    """Return what the first run of each model and method holds."""
    first: dict[tuple[str, str], Run] = {}
    for run in runs:
        first.setdefault((run.model, run.method), run)
    return [found for run in first.values() if (found := _held(run))]


def _held(run: Run) -> Held | None:
    """Return what a run holds; None where that has no closed form."""
    record = run.record
    if record.model_config.get("model_type") not in MODEL_TYPES:
        return None
    try:
        spec = read_config(record.model_config, record.recipe.model)
        terms = states(spec, record.recipe, record.device.kind).terms
    except UserError:
        return None
    total = sum(term.bytes for term in terms)
    written = tuple(f"{term.bytes_per_element:.3g} B × {term.elements:,} ({term.what})" for term in terms)
    return Held(run, total, total / spec.parameters, written)
