"""What tensors take in a traced step, before the allocator makes blocks of them: what the closed form answers too."""

from __future__ import annotations

from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.memory.breakdown import Breakdown
from lorabench.estimator.optimizers.table import OPTIMIZERS
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.trace.trace import run_on_meta


def traced_tensors(
    resolved: ResolvedRecipe, backend: Backend = "cuda", compute_capability: str | None = None
) -> Breakdown:
    """Return the bytes of tensors at the peak of a steady step, and at the peak of each phase."""
    steps = OPTIMIZERS[resolved.recipe.optim].steady_step
    ledger, _, _ = run_on_meta(resolved, backend, steps, lambda what: None, compute_capability)
    return ledger.breakdown()
