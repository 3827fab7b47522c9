"""The estimate of a recipe on a GPU by replay, and whether it agrees with rehearsals there."""

from __future__ import annotations

from typing import Any

import pytest

from lorabench.estimator.closed_form.replay import replayed_memory
from lorabench.estimator.devices.device import find_device
from lorabench.estimator.memory.breakdown import Breakdown
from lorabench.estimator.models.catalogue import find_model
from lorabench.estimator.recipes.defaults import recipe_for
from lorabench.estimator.recipes.resolved import ResolvedRecipe


def replayed_on(gpu: str, model: str, **options: Any) -> Breakdown:
    """Return the memory of ``model`` with recipe ``options`` on a GPU of the catalogue."""
    return replayed(gpu, recipe_for(find_model(model), **options))


def replayed(gpu: str, resolved: ResolvedRecipe) -> Breakdown:
    """Return the memory of a recipe on a GPU of the catalogue."""
    device = find_device(gpu)
    return replayed_memory(
        resolved,
        compute_capability=device.compute_capability,
        multiprocessors=device.multiprocessors,
    )


def assert_rehearsed(memory: Breakdown, *, allocated: int, reserved: int, within: tuple[float, float]) -> None:
    """Check the peaks of allocated and reserved bytes, each ``within`` a share of what a rehearsal counted."""
    assert memory.peak_allocated_bytes == pytest.approx(allocated, rel=within[0])
    assert memory.peak_reserved_bytes == pytest.approx(reserved, rel=within[1])
