"""The memory traffic of an optimizer's step, and the number of its kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from lorabench.estimator.optimizers.optimizer import Optimizer
from lorabench.estimator.optimizers.table import OPTIMIZERS
from lorabench.estimator.optimizers.tensors import TrainedTensors
from lorabench.estimator.recipes.resolved import ResolvedRecipe

TENSORS_IN_A_KERNEL = 36
"""Tensors per multi-tensor kernel of depth 4. The size of a kernel's arguments limits it (`MultiTensorApply.cuh`)."""
CLIPPING_ACCESSES = 3
"""Memory accesses of gradient clipping, per gradient: one read for the norm, a read and a write to scale."""
SCALING_ACCESSES = 2
"""Memory accesses of float16's gradient unscaling, per gradient: a read and a write."""


class OptimizerStep(NamedTuple):
    """The work of one step of the optimizer."""

    bytes: Any
    """Bytes that it reads and writes; an array for a grid of ranks."""
    kernels: int
    """Number of kernels on a GPU; one kernel may update a list of tensors."""
    tensors: int
    calls: int
    """The host's work, in launches of operations."""


def optimizer_step(resolved: ResolvedRecipe) -> OptimizerStep:
    """Return the optimizer's step on the recipe's trained tensors."""
    optimizer = OPTIMIZERS[resolved.recipe.optim]
    trained = resolved.trained_tensors
    tensors = sum(group.count for group in trained)
    weights = sum(group.bytes * group.count for group in trained)
    lists = -(-tensors // TENSORS_IN_A_KERNEL)
    scaled = resolved.recipe.mixed_precision == "fp16"
    before = (SCALING_ACCESSES * scaled + CLIPPING_ACCESSES) * weights
    kernels = optimizer.update.kernels * (lists if optimizer.update.over == "lists" else tensors)
    calls = tensors * (optimizer.update.calls or max(1, kernels // tensors))
    return OptimizerStep(before + _passed(optimizer, trained, weights), kernels + lists * (scaled + 2), tensors, calls)


def _passed(optimizer: Optimizer, trained: Sequence[TrainedTensors], weights: int) -> int:
    """Return the bytes that the update of ``trained`` reads and writes. ``weights``: bytes of these tensors."""
    update = optimizer.update
    if update.accesses is None:
        return (3 + update.again) * weights + 2 * sum(state.passed(trained) for state in optimizer.states)
    if update.itemsize is None:
        return update.accesses * weights
    return update.accesses * update.itemsize * sum(group.count * group.elements for group in trained)
