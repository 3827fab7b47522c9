"""The arithmetic that a step needs (for MFU), and that it runs (for HFU).

A matmul (m × k) · (k × n) takes 2·m·n·k floating-point operations. Only matmuls count, as in PaLM (Chowdhery et al.
2022, appendix B): all other operations are memory-bound.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from lorabench.estimator.closed_form.sizes import B, S
from lorabench.estimator.closed_form.work import AttentionWork, ChunkedLoss, Dequantisation, Matmul, Work
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.speed.extents import Filled, fill_recipe
from lorabench.estimator.speed.operations import Operation, micro_batch_operations

FORWARD_MATMULS, BACKWARD_MATMULS, BACKWARD_MATMULS_DONE = 2, 4, 5
"""Matmuls of attention: two in forward (scores, output); four in backward; five if the kernel recomputes the scores."""


class StepFlops(Struct, frozen=True, kw_only=True):
    """Floating-point operations of all matmuls of one optimizer step."""

    model: float
    """Operations that training needs, without recomputation and masked pairs: the numerator of MFU. They are those of
    forward, of the gradients of inputs on the way to trained weights, and of the gradients of trained weights."""
    hardware: float
    """Operations that run, with the recomputation of checkpointing and masked pairs that a kernel does not skip: the
    numerator of HFU."""


def step_flops(resolved: ResolvedRecipe) -> StepFlops:
    """Return the floating-point operations of one step of the recipe on a GPU.

    Raises:
        UserError: the combination has no closed form.
    """
    filled = fill_recipe(resolved)
    # Without checkpointing nothing runs twice, and the embedding's output needs no gradient.
    once = micro_batch_operations(resolved.without_checkpointing())
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
        return len(work.matmuls) * 2 * filled.values[work.tokens] * work.features * work.vocabulary
    assert work is None or isinstance(work, Dequantisation)
    return 0


def _needed(operation: Operation, filled: Filled) -> Any:
    work = operation.work
    if isinstance(work, AttentionWork):
        matmuls = BACKWARD_MATMULS if work.backward else FORWARD_MATMULS
        return matmuls * _flops_of_pairs(work, filled) * filled.seen_pairs
    if isinstance(work, Matmul) and work.group == "attention":
        return work_flops(work, filled) * filled.seen_pairs / filled.values[S * S]
    if isinstance(work, ChunkedLoss):
        work = work._replace(matmuls=tuple(matmul for matmul in work.matmuls if matmul != "logits again"))
    return work_flops(work, filled)


def _flops_of_pairs(work: AttentionWork, filled: Filled) -> Any:
    """Return the floating-point operations of one matmul per pair of positions, for all heads and sequences."""
    return 2 * work.heads * work.head_dim * filled.values[B]
