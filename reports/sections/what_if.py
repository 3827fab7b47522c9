"""What if: an estimate of a recipe that the reader chooses on the page."""

from __future__ import annotations

from typing import Any

from lorabench.estimator.memory.breakdown import COMPONENTS
from lorabench.estimator.recipes.defaults import recipe_for
from lorabench.estimator.recipes.recipe import CHOICES
from lorabench.reports.planning import LARGEST_BATCH_SIZE, RANKS, longest_length, methods
from lorabench.reports.subject import Subject


def what_if(subject: Subject) -> dict[str, Any] | None:
    """Return the choices. The estimates use the page's `planning` data."""
    if not subject.models:
        return None
    first = subject.models[0]
    usual = recipe_for(first).recipe
    return {
        "models": [spec.name for spec in subject.models],
        "methods": [method for method in CHOICES["method"] if any(method in methods(spec) for spec in subject.models)],
        "method": usual.method,
        "ranks": RANKS,
        "rank": usual.rank,
        "gpus": subject.gpus,
        "largest_batch_size": LARGEST_BATCH_SIZE,
        "seq_len": min(usual.seq_len, longest_length(first)),
        "legend": [
            {"key": name, "label": name.replace("_", " "), "description": description}
            for name, description in COMPONENTS.items()
        ],
    }
