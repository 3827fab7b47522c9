"""Seconds of a step, by group of operations."""

from __future__ import annotations

from typing import Any, NamedTuple

from lorabench.estimator.closed_form.autograd import ITEMSIZES
from lorabench.estimator.closed_form.sizes import CHUNK, TOKENS, S
from lorabench.estimator.closed_form.work import AttentionWork, ChunkedLoss, Dequantisation, Matmul
from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.memory.quantization import BLOCK
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.speed.arithmetic import larger
from lorabench.estimator.speed.extents import Filled, fill_recipe
from lorabench.estimator.speed.flops import work_flops
from lorabench.estimator.speed.operations import MicroBatch, Operation, micro_batch_operations
from lorabench.estimator.speed.optimizer_steps import OptimizerStep, optimizer_step
from lorabench.estimator.speed.rates import Rates

GROUPS: dict[str, str] = {
    "linear layers": "matmuls with the layers' weights, and their gradients",
    "adapters": "the low-rank matmuls",
    "attention": "scores, and the values that they weigh",
    "logits and loss": "the head, softmax and cross-entropy",
    "dequantisation": "4-bit weights written out, at every use",
    "elementwise": "norms, activations, rotary positions, dropout, casts, residuals",
    "optimizer": "the optimizer's step, and gradients clipped",
    "paging": "optimizer states that the device has no room for, there and back",
    "launch overhead": "the device idles while the processor launches the next operation",
}
"""Group of operations → its description, in the order of display."""


class StepWork(NamedTuple):
    """The work of one optimizer step. Sizes are numbers, or arrays for a grid of recipes."""

    micro_batch: MicroBatch
    filled: Filled
    optimizer: OptimizerStep
    gradient_accumulation: int
    backend: Backend


class StepTime(NamedTuple):
    """Seconds of one optimizer step with all its micro-batches: numbers, or arrays for a grid of recipes."""

    groups: dict[str, Any]
    """Group (of `GROUPS`) → seconds; they add up to `total`."""

    @property
    def total(self) -> Any:
        """Seconds of the whole step."""
        return sum(self.groups.values())


def size_step(resolved: ResolvedRecipe, backend: Backend = "cuda") -> StepWork:
    """Return the work of a step of the recipe, at the recipe's own sizes.

    Raises:
        UserError: the combination has no closed form.
    """
    return StepWork(
        micro_batch_operations(resolved, backend),
        fill_recipe(resolved),
        optimizer_step(resolved),
        resolved.recipe.gradient_accumulation,
        backend,
    )


def step_time(step: StepWork, rates: Rates, paged_bytes: Any = 0) -> StepTime:
    """Return the seconds of ``step`` at ``rates``.

    ``paged_bytes``: bytes of optimizer states that do not fit on the device.
    """
    groups: dict[str, Any] = dict.fromkeys(GROUPS, 0.0)
    batches = step.gradient_accumulation
    for operation, times in step.micro_batch.operations:
        group, seconds = _seconds(operation, step.filled, rates)
        groups[group] = groups[group] + batches * times * seconds
    launches = step.micro_batch.launches.items()
    launch_seconds = batches * sum(times * rates.launch_seconds(phase) for phase, times in launches)
    overhead = _launch_overhead(sum(groups.values()), launch_seconds, rates)
    optimizer = step.optimizer
    kernels = optimizer.kernels if step.backend == "cuda" else optimizer.tensors
    groups["optimizer"] = kernels * rates.memory_bound(optimizer.bytes / kernels)
    groups["paging"] = rates.paging(2 * paged_bytes)
    overhead = overhead + _launch_overhead(
        groups["optimizer"], optimizer.calls * rates.launch_seconds("optimizer"), rates
    )
    groups["launch overhead"] = overhead
    return StepTime(groups)


def _launch_overhead(device_seconds: Any, launch_seconds: float, rates: Rates) -> Any:
    """Return the seconds that launches add to the device's own work: all of them unless the host launches ahead."""
    return larger(0.0, launch_seconds - device_seconds) if rates.asynchronous else launch_seconds


def _seconds(operation: Operation, filled: Filled, rates: Rates) -> tuple[str, Any]:
    """Return the group of one operation, and its seconds."""
    work = operation.work
    if isinstance(work, Matmul):
        m, n, k, batch = filled(work.m), filled(work.n), filled(work.k), filled(work.batch)
        return work.group, rates.matmul(m, n, k, batch, work.dtype)
    if isinstance(work, AttentionWork):
        flops = work_flops(work, filled)
        bytes_ = _attention_bytes(work, filled)
        return "attention", rates.attention(flops, bytes_, work.dtype, work.kernel, backward=work.backward)
    if isinstance(work, Dequantisation):
        return "dequantisation", rates.dequantisation(dequantisation_bytes(work.elements, work.dtype))
    if isinstance(work, ChunkedLoss):
        return "logits and loss", _chunked_loss(work, filled, rates)
    return "logits and loss" if operation.logits else "elementwise", rates.memory_bound(
        filled.sum(operation.traffic), operation.kernel
    )


def dequantisation_bytes(elements: int, dtype: str) -> float:
    """Return the bytes that the dequantisation of a 4-bit weight to ``dtype`` reads and writes.

    They are half a byte per element, four bytes per block for its absmax (quantised or not), and the result.
    """
    return elements * (1 / 2 + 4 / BLOCK + ITEMSIZES[dtype])


def _attention_bytes(work: AttentionWork, filled: Filled) -> Any:
    """Return the bytes that attention reads and writes.

    Forward reads queries, keys and values, and writes the output. Backward reads these four and the output's gradient,
    and writes three gradients. A mask is one element per pair of positions, shared by the heads.
    """
    tokens = filled.values[TOKENS]
    queries, keys = tokens * work.heads * work.head_dim, tokens * work.kv_heads * work.head_dim
    elements = 4 * queries + 4 * keys if work.backward else 2 * queries + 2 * keys
    if not work.skips_masked:
        elements += tokens * filled.values[S]
    return elements * ITEMSIZES[work.dtype]


def _chunked_loss(work: ChunkedLoss, filled: Filled, rates: Rates) -> Any:
    tokens = filled.values[CHUNK]
    tiles = filled.values[work.tokens] / tokens * work.vocabulary / work.width
    features, width = work.features, work.width
    shapes = {
        "logits": (tokens, width, features),
        "logits again": (tokens, width, features),
        "hidden": (tokens, features, width),
        "weight": (width, features, tokens),
    }
    seconds = sum(rates.matmul(*shapes[matmul], 1, work.dtype) for matmul in work.matmuls)
    seconds = seconds + rates.memory_bound(work.accesses * tokens * width * ITEMSIZES[work.dtype], "rows")
    return tiles * seconds
