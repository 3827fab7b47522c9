"""Seconds of a step, by group of operations."""

from __future__ import annotations

from typing import NamedTuple

from lorabench.estimator.closed_form.autograd import ITEMSIZES
from lorabench.estimator.closed_form.sizes import BS, CHUNK
from lorabench.estimator.closed_form.work import Attention, ChunkedLoss, Dequantisation, Product
from lorabench.estimator.memory.breakdown import Kernels
from lorabench.estimator.models.spec import ModelSpec
from lorabench.estimator.recipes.parameters import trained_tensors
from lorabench.estimator.recipes.recipe import Recipe
from lorabench.estimator.speed.extents import Filled, fill_recipe
from lorabench.estimator.speed.flops import work_flops
from lorabench.estimator.speed.operations import Operation, micro_batch_operations
from lorabench.estimator.speed.optimizer_steps import optimizer_step
from lorabench.estimator.speed.rates import HostPhase, Rates

GROUPS: dict[str, str] = {
    "linear layers": "products with the layers' weights, and their gradients",
    "adapters": "the low-rank products",
    "attention": "scores, and the values that they weigh",
    "logits and loss": "the head, softmax and cross-entropy",
    "dequantisation": "4-bit weights written out, at every use",
    "elementwise": "norms, activations, rotary positions, dropout, casts, residuals",
    "optimizer": "the optimizer's step, and gradients clipped",
    "paging": "optimizer states that the device has no room for, there and back",
    "waiting for the host": "the device idles while the processor sends off the next operation",
}
"""Groups of operations, in the order in which people read them, each with what it is."""
PASSES_OVER_LOGITS = 3
"""By the kernel of a fused loss: read for the maximum and the sum, read again, and written as gradients."""


class StepTime(NamedTuple):
    """Seconds of one optimizer step, all its micro-batches together."""

    groups: dict[str, float]
    """Group (of `GROUPS`) → seconds; they add up to `total`."""

    @property
    def total(self) -> float:
        """Seconds of the whole step."""
        return sum(self.groups.values())


def step_time(
    spec: ModelSpec, recipe: Recipe, rates: Rates, kernels: Kernels = "cuda", paged_bytes: int = 0
) -> StepTime:
    """Return how long a step of ``recipe`` on ``spec`` takes at ``rates``.

    ``paged_bytes``: of the optimizer's states, what the device has no room for.

    Raises:
        UserError: a combination that has no closed form.
    """
    filled = fill_recipe(spec, recipe)
    groups = dict.fromkeys(GROUPS, 0.0)
    batches = recipe.gradient_accumulation
    host_seconds = 0.0
    for operation, times in micro_batch_operations(spec, recipe, kernels):
        group, seconds = _seconds(operation, filled, rates)
        groups[group] += batches * times * seconds
        phase: HostPhase = "backward" if operation.phase == "backward" else "forward"
        host_seconds += batches * times * rates.host_seconds(phase)
    waiting = _waiting(sum(groups.values()), host_seconds, rates)
    step = optimizer_step(
        recipe.optim,
        trained_tensors(spec, recipe),
        scaled=recipe.mixed_precision == "fp16",
        clipped=True,
    )
    passes = step.kernels if kernels == "cuda" else step.tensors
    groups["optimizer"] = passes * rates.passing(step.bytes / passes)
    groups["paging"] = rates.paging(2 * paged_bytes)
    waiting += _waiting(groups["optimizer"], step.calls * rates.host_seconds("optimizer"), rates)
    groups["waiting for the host"] = waiting
    return StepTime(groups)


def _waiting(device_seconds: float, host_seconds: float, rates: Rates) -> float:
    """Return how much longer than the device's own work it takes until the processor is through too."""
    return max(0.0, host_seconds - device_seconds) if rates.asynchronous else host_seconds


def _seconds(operation: Operation, filled: Filled, rates: Rates) -> tuple[str, float]:
    """Return the group of one operation, and how long it takes."""
    work = operation.work
    if isinstance(work, Product):
        m, n, k, batch = filled(work.m), filled(work.n), filled(work.k), filled(work.batch)
        return work.group, rates.product(m, n, k, batch, work.dtype)
    if isinstance(work, Attention):
        flops = work_flops(work, filled)
        masked = not work.skips_masked
        bytes_ = _attention_bytes(work, filled)
        return "attention", rates.attention(flops, bytes_, work.dtype, backward=work.backward, masked=masked)
    if isinstance(work, Dequantisation):
        return "dequantisation", rates.dequantisation(dequantisation_bytes(work.elements, work.dtype))
    if isinstance(work, ChunkedLoss):
        return "logits and loss", _chunked_loss(work, filled, rates)
    return "logits and loss" if operation.logits else "elementwise", rates.passing(
        filled.sum(operation.passed), operation.kernel
    )


def dequantisation_bytes(elements: int, dtype: str) -> float:
    """Return the bytes that pass when a 4-bit weight is written out in ``dtype``.

    Half a byte each, a constant for 64 of them (counted as its four bytes), and the result.
    """
    return elements * (1 / 2 + 4 / 64 + ITEMSIZES[dtype])


def _attention_bytes(work: Attention, filled: Filled) -> float:
    """Return the bytes of queries, keys, values and output; backward reads these and the gradient, and writes three.

    A mask is one element for each pair of positions, shared by the heads.
    """
    tokens = filled((1, BS))
    queries, keys = tokens * work.heads * work.head_dim, tokens * work.kv_heads * work.head_dim
    elements = 4 * queries + 4 * keys if work.backward else 2 * queries + 2 * keys
    if not work.skips_masked:
        elements += tokens * filled.seq_len
    return float(elements * ITEMSIZES[work.dtype])


def _chunked_loss(work: ChunkedLoss, filled: Filled, rates: Rates) -> float:
    rows = filled((1, CHUNK))
    chunks = filled((1, BS)) / rows
    columns, vocabulary = work.columns, work.vocabulary
    seconds = rates.product(rows, vocabulary, columns, 1, work.dtype)
    seconds += rates.product(rows, columns, vocabulary, 1, work.dtype)
    if work.trains:
        seconds += rates.product(vocabulary, columns, rows, 1, work.dtype)
    seconds += rates.passing(PASSES_OVER_LOGITS * rows * vocabulary * ITEMSIZES[work.dtype], "rows")
    return float(chunks * seconds)
