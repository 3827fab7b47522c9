"""The bytes that an optimizer's step passes over, and how many kernels it sends off.

Read in torch 2.13 (`torch.optim`, `_multi_tensor`, `_fused`), bitsandbytes 0.50 (`optim`) and transformers 5
(`optimization.Adafactor`), for the settings that the training step uses: no weight decay but AdamW's, no momentum.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

from lorabench.estimator.memory.optimizers import in_8bit
from lorabench.estimator.models.spec import ModelSpec
from lorabench.estimator.recipes.parameters import TrainedTensors, trained_tensors
from lorabench.estimator.recipes.recipe import ITEMSIZE, Optim, Recipe

FUSED_ACCESSES = 7
"""Of weight, gradient and both moments: all are read, all but the gradient written."""
FOREACH_ACCESSES = 21
"""Of AdamW's list kernels, one after the other: decay 2, first moment 3, second moment 2 + 4, square root 2, bias
correction 2, epsilon 2, and the update 4, as reads and writes of an element."""
FOREACH_KERNELS = 8
ADAFACTOR_ACCESSES = 21
"""Reads and writes, in float32: the weight's size 1, the gradient's square and epsilon 4, their means over rows and
columns 2, the outer product of their roots 1, times the gradient 3, the update's size 1, its clipping 2, its step size
2 and sign 2, and the weight 3."""
ADAFACTOR_KERNELS = 24
TENSORS_IN_A_KERNEL = 36
"""Tensors that one kernel over lists of four takes, by the size of a kernel's arguments (`MultiTensorApply.cuh`)."""
BITSANDBYTES = ("8bit", "32bit")
"""How the names of bitsandbytes' optimizers end."""
BITSANDBYTES_CALLS = 3
"""Operations for each tensor, one after the other in Python: its settings, its states' pages, its update."""
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


def optimizer_step(spec: ModelSpec, recipe: Recipe) -> OptimizerStep:
    """Return the optimizer's step of ``recipe`` on the tensors of ``spec`` that train."""
    trained = list(trained_tensors(spec, recipe))
    tensors = sum(alike.many for alike in trained)
    weights = sum(prod(alike.shape) * alike.many * ITEMSIZE[alike.dtype] for alike in trained)
    lists = -(-tensors // TENSORS_IN_A_KERNEL)
    scaled = recipe.mixed_precision == "fp16"
    before = (SCALING_ACCESSES * scaled + CLIPPING_ACCESSES) * weights
    bytes_, kernels = _update(recipe.optim, trained, weights, lists)
    calls = tensors * (BITSANDBYTES_CALLS if recipe.optim.endswith(BITSANDBYTES) else max(1, kernels // tensors))
    return OptimizerStep(before + bytes_, kernels + lists * (scaled + 2), tensors, calls)


def _update(optim: Optim, trained: list[TrainedTensors], weights: int, lists: int) -> tuple[float, int]:
    """Return the bytes that the update passes over, and its kernels; ``weights`` are bytes too."""
    tensors = sum(alike.many for alike in trained)
    if optim == "adamw_torch_fused":
        return FUSED_ACCESSES * weights, lists
    if optim == "adamw_torch":
        return FOREACH_ACCESSES * weights, FOREACH_KERNELS * lists
    if optim == "sgd":
        return 3 * weights, lists
    if optim == "adafactor":
        elements = sum(prod(alike.shape) * alike.many for alike in trained)
        return ADAFACTOR_ACCESSES * elements * 4, ADAFACTOR_KERNELS * tensors
    moments = 1 if "lion" in optim else 2
    states = sum(
        2 * moments * alike.many * prod(alike.shape) * (1 if in_8bit(optim, alike) else 4) for alike in trained
    )
    return 3 * weights + states, tensors
