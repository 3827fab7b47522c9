"""An extra step whose live storages are counted by component."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from lorabench.estimator.models.spec import ModelSpec
from lorabench.estimator.trace.storages import StorageLedger

if TYPE_CHECKING:
    from torch import nn

    from lorabench.estimator.training.step import Batch, TrainingStep

TIMELINE_POINTS = 2000
"""Maximum number of points of a timeline."""


def count_step(model: nn.Module, step: TrainingStep, spec: ModelSpec, batches: Iterator[Batch]) -> StorageLedger:
    """Train one step on ``batches`` and return the ledger of its storages."""
    ledger = StorageLedger(step.device_type)
    ledger.adopt_model(model)
    ledger.adopt_optimizer(step.optimizer)

    def adopted() -> Iterator[Batch]:
        for batch in batches:
            ledger.adopt("buffers", *batch.values())
            yield batch

    before, step.on_phase = step.on_phase, ledger.begin_phase
    try:
        with ledger:
            ledger.watch_model(model, spec.vocab_size)
            ledger.begin_step()
            step(adopted())
            ledger.end_step(model, step.optimizer)
    finally:
        step.on_phase = before
    return ledger


def components_of_step(
    model: nn.Module, step: TrainingStep, spec: ModelSpec, batches: Iterator[Batch]
) -> dict[str, int]:
    """Return the bytes of an extra step's storages at their peak, by component.

    Following storages costs memory: autograd then adds some gradients out of place. If the GPU has not enough, only
    storages that outlive a step are counted.
    """
    import torch

    try:
        return count_step(model, step, spec, batches).breakdown().components
    except torch.OutOfMemoryError:
        pass  # the memory of its frames is free only after this block
    step.optimizer.zero_grad(set_to_none=True)
    outlasting = StorageLedger(step.device_type)
    outlasting.begin_phase("optimizer")
    outlasting.adopt_model(model)
    outlasting.adopt_optimizer(step.optimizer)
    return outlasting.breakdown().components


def thinned(points: list[tuple[float, int]]) -> tuple[tuple[float, int], ...]:
    """Return at most `TIMELINE_POINTS` points: the first, the last, and the highest of each interval between."""
    if len(points) <= TIMELINE_POINTS:
        return tuple(points)
    stretches = TIMELINE_POINTS - 2
    inner = points[1:-1]
    cuts = [len(inner) * number // stretches for number in range(stretches + 1)]
    highest = [max(inner[start:end], key=lambda point: point[1]) for start, end in pairwise(cuts)]
    return (points[0], *highest, points[-1])
