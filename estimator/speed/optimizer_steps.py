"""The bytes that an optimizer's step passes over, and how many kernels it sends off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from lorabench.estimator.optimizers.optimizer import Optimizer
from lorabench.estimator.optimizers.table import OPTIMIZERS
from lorabench.estimator.optimizers.tensors import TrainedTensors
from lorabench.estimator.recipes.resolved import ResolvedRecipe

TENSORS_IN_A_KERNEL = 36
"""Tensors that one kernel over lists of four takes, by the size of a kernel's arguments (`MultiTensorApply.cuh`)."""
CLIPPING_ACCESSES = 3
"""To clip gradients to a norm: one read for the norm, and a read and a write to scale."""
SCALING_ACCESSES = 2
"""Of gradients that were scaled for float16: they are read and written to undo it."""


class OptimizerStep(NamedTuple):
    """What one step of the optimizer does."""

    bytes: Any
    """That it reads and writes; an array for a grid of ranks."""
    kernels: int
    """On a GPU, where one may take a list of tensors."""
    tensors: int
    calls: int
    """What the processor does for it, in operations."""


def optimizer_step(resolved: ResolvedRecipe) -> OptimizerStep:
    """Return the optimizer's step of the recipe on the tensors that train."""
    optimizer = OPTIMIZERS[resolved.recipe.optim]
    trained = resolved.trained_tensors
    tensors = sum(alike.count for alike in trained)
    weights = sum(alike.bytes * alike.count for alike in trained)
    lists = -(-tensors // TENSORS_IN_A_KERNEL)
    scaled = resolved.recipe.mixed_precision == "fp16"
    before = (SCALING_ACCESSES * scaled + CLIPPING_ACCESSES) * weights
    kernels = optimizer.update.kernels * (lists if optimizer.update.over == "lists" else tensors)
    calls = tensors * (optimizer.update.calls or max(1, kernels // tensors))
    return OptimizerStep(before + _passed(optimizer, trained, weights), kernels + lists * (scaled + 2), tensors, calls)


def _passed(optimizer: Optimizer, trained: Sequence[TrainedTensors], weights: int) -> int:
    """Return the bytes that the update of ``trained`` reads and writes; those tensors take ``weights`` bytes."""
    update = optimizer.update
    if update.accesses is None:
        return (3 + update.again) * weights + 2 * sum(state.passed(trained) for state in optimizer.states)
    if update.itemsize is None:
        return update.accesses * weights
    return update.accesses * update.itemsize * sum(alike.count * alike.elements for alike in trained)
