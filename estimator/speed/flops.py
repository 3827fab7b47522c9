"""The arithmetic of a step: what the training needs (for MFU), and what is done (for HFU).

A matmul of (m × k) and (k × n) matrices takes 2·m·n·k floating-point operations. Only matmuls are counted, as is the
custom (Chowdhery et al. 2022, PaLM, appendix B): all other operations are memory-bound.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from lorabench.estimator.closed_form.sizes import TOKENS, B, S
from lorabench.estimator.closed_form.work import AttentionWork, ChunkedLoss, Dequantisation, Matmul, Work
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.speed.extents import Filled, fill_recipe
from lorabench.estimator.speed.operations import Operation, micro_batch_operations

FORWARD_MATMULS, BACKWARD_MATMULS, BACKWARD_MATMULS_DONE = 2, 4, 5
"""Of attention: over queries, keys and values; their gradients; and the scores once more, which were not kept."""


class StepFlops(Struct, frozen=True, kw_only=True):
    """Floating-point operations of the matmuls of one step, all its micro-batches together."""

    model: float
    """Those that the training needs: forward, gradients of inputs on the way to what trains, gradients of weights that
    train; pairs of positions that see each other. The numerator of MFU."""
    hardware: float
    """Those that are done: with recomputation under checkpointing, and masked pairs that a kernel does not skip. The
    numerator of HFU."""


def step_flops(resolved: ResolvedRecipe) -> StepFlops:
    """Return the arithmetic of one step of the recipe on a GPU.

    Raises:
        UserError: a combination that has no closed form.
    """
    filled = fill_recipe(resolved)
    # Without checkpointing nothing is done twice, but the layers' first input is no longer made to need a gradient.
    once = micro_batch_operations(resolved.replaced(gradient_checkpointing=False))
    model = sum(times * _needed(operation, filled) for operation, times in once.operations)
    done = micro_batch_operations(resolved)
    hardware = sum(times * work_flops(operation.work, filled) for operation, times in done.operations)
    batches = resolved.recipe.gradient_accumulation
    return StepFlops(model=batches * float(model), hardware=batches * float(hardware))


def work_flops(work: Work | None, filled: Filled) -> Any:
    """Return the floating-point operations of the matmuls in ``work``."""
    if isinstance(work, Matmul):
        return 2 * filled(work.batch) * filled(work.m) * filled(work.n) * filled(work.k)
    if isinstance(work, AttentionWork):
        matmuls = BACKWARD_MATMULS_DONE if work.backward else FORWARD_MATMULS
        return matmuls * _flops_of_pairs(work, filled) * filled.kernel_pairs(work)
    if isinstance(work, ChunkedLoss):
        matmuls = 3 if work.trains else 2
        return matmuls * 2 * filled.values[TOKENS] * work.features * work.vocabulary
    assert work is None or isinstance(work, Dequantisation)
    return 0


def _needed(operation: Operation, filled: Filled) -> Any:
    work = operation.work
    if isinstance(work, AttentionWork):
        matmuls = BACKWARD_MATMULS if work.backward else FORWARD_MATMULS
        return matmuls * _flops_of_pairs(work, filled) * filled.seen_pairs
    if isinstance(work, Matmul) and work.group == "attention":
        return work_flops(work, filled) * filled.seen_pairs / filled.values[S * S]
    return work_flops(work, filled)


def _flops_of_pairs(work: AttentionWork, filled: Filled) -> Any:
    """Return the floating-point operations of one product over one pair, for all heads and sequences."""
    return 2 * work.heads * work.head_dim * filled.values[B]
