"""Whether the losses of a run are those of a training that works."""

from __future__ import annotations

import math
from collections.abc import Sequence

DIVERGED = 1.1
"""A loss has diverged where every one of the last quarter of the steps is above every one of the first quarter by this
factor: beyond what one batch differs from the next, and not undone by single good or bad steps."""

UNCHANGED = 1e-4
"""Relative difference of two means over thousands of bfloat16 products that is nothing but the order of additions."""


def complaint_about(losses: Sequence[float | None]) -> str | None:
    """Return what is wrong with the losses of successive steps, None for one that is not finite; None if nothing is."""
    lost = [number for number, loss in enumerate(losses, 1) if loss is None]
    if lost:
        return f"the loss was not finite in {len(lost)} of {len(losses)} steps, first in step {lost[0]}"
    finite = [loss for loss in losses if loss is not None]
    quarter = len(finite) // 4
    if not quarter:
        return None
    before, after = max(finite[:quarter]), min(finite[-quarter:])
    if after > DIVERGED * before:
        return f"the loss diverged: from at most {before:.4g} in the first quarter to at least {after:.4g} in the last"
    return None


def complaint_about_adapters(base_loss: float | None, adapted_loss: float | None) -> str | None:
    """Return what is wrong with adapters that have learnt nothing, given one batch's loss without them and with them.

    They start with B = 0, so they add nothing and the losses are equal, but for kernels that add in no fixed order.
    """
    if base_loss is None or adapted_loss is None or math.isclose(base_loss, adapted_loss, rel_tol=UNCHANGED):
        return None
    return f"adapters changed the loss before they learnt anything, from {base_loss:.6g} to {adapted_loss:.6g}"
