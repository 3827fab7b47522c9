"""Check that the losses of a run look like working training."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lorabench.estimator.recipes.recipe import Recipe

DIVERGED = 1.1
"""A loss has diverged if every loss of the last quarter exceeds every loss of the first quarter by this factor. That is
more than the difference between batches, and single good or bad steps do not matter."""

UNCHANGED = 1e-4
"""Relative difference that the order of additions alone can cause, in means over thousands of bfloat16 products."""


def complaint_about(losses: Sequence[float | None]) -> str | None:
    """Return what is wrong with the losses of successive steps; None if nothing is. A None loss is not finite."""
    lost = [number for number, loss in enumerate(losses, 1) if loss is None]
    if lost:
        return f"the loss was not finite in {len(lost)} of {len(losses)} steps, first in step {lost[0]}"
    finite = [loss for loss in losses if loss is not None]
    quarter = len(finite) // 4
    if not quarter:
        return None
    before, after = max(finite[:quarter]), min(finite[-quarter:])
    if after > DIVERGED * before:
        return f"the loss diverged: at most {before:.4g} in the first quarter, at least {after:.4g} in the last"
    return None


def complaint_about_adapters(base_loss: float | None, adapted_loss: float | None) -> str | None:
    """Return what is wrong with untrained adapters, given one batch's loss without and with them; None if nothing is.

    Adapters start with B = 0 and add nothing, so the losses are equal, except for kernels with no fixed summation
    order.
    """
    if base_loss is None or adapted_loss is None or math.isclose(base_loss, adapted_loss, rel_tol=UNCHANGED):
        return None
    return f"untrained adapters changed the loss from {base_loss:.6g} to {adapted_loss:.6g}"


def complaint_about_text(tokens: int | None, recipe: Recipe) -> str | None:
    """Return what is wrong with a dataset of ``tokens`` that do not fill a batch of ``recipe``; None if they do."""
    if tokens is None:
        return None
    if recipe.padding:
        too_few = f" in fewer than the {recipe.batch_size} documents of a batch"
    else:
        too_few = f", too few for one batch of {recipe.batch_size} × {recipe.seq_len}"
    return f"the dataset has {tokens:,} tokens{too_few}: every batch repeats them"
