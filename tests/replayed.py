"""The estimate of a recipe on a GPU by replay, to be compared with rehearsals there."""

from __future__ import annotations

from typing import Any

from lorabench.estimator.closed_form.replay import replayed_memory
from lorabench.estimator.devices.device import find_device
from lorabench.estimator.memory.breakdown import Breakdown
from lorabench.estimator.models.catalogue import find_model
from lorabench.estimator.recipes.defaults import recipe_for


def replayed_on(gpu: str, model: str, **options: Any) -> Breakdown:
    """Return the memory of ``model`` with recipe ``options`` on a GPU of the catalogue."""
    device = find_device(gpu)
    return replayed_memory(
        recipe_for(find_model(model), **options),
        compute_capability=device.compute_capability,
        multiprocessors=device.multiprocessors,
    )
