"""Reserved memory and device total without a replay: point estimates and ranges.

The point estimate has no fragmentation. The range goes up to the memory with which every recipe ran in replays of the
allocator: 500 recipes of catalogue models on four GPUs (`benchmarks/reserved.py`, seeds 5 and 6). The allocator may
reserve more if the device has more: 2 in 100 of those recipes did, up to 109 % of the working bytes above what tensors
need. It gives that back before it fails. Fragmentation is relative to the working bytes, since persistent tensors leave
no gaps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from lorabench.estimator.memory.context import context_of
from lorabench.estimator.memory.workspaces import workspaces
from lorabench.estimator.quantities import MIB

SEGMENT_BYTES = 2 * MIB
"""The caching allocator takes memory from the device in multiples of this (torch, c10/cuda/CUDACachingAllocator.h)."""

PERSISTENT = ("weights", "quantized_weights", "adapters", "optimizer_states", "workspaces")
"""Components that stay from step to step. The others are working bytes, which a step allocates and frees."""
WORST_FRAGMENTATION_PERCENT = 67
"""The largest excess over allocated bytes that a recipe needed to run, in percent of the working bytes at the peak: 66
percent for QLoRA of Llama-3.1-405B with one sequence of 512 tokens, on an H100."""
WORST_EXPANDABLE_PERCENT = 27
"""The same with ``expandable_segments:True``, of 220 recipes (seed 8): QLoRA of Yi-1.5-9B with one sequence of 512
tokens, on an H100. All but seven needed at most 10 percent."""


class Reserved(NamedTuple):
    """Bytes that allocator and process take from the device, numbers or arrays. Each range is (low, high)."""

    reserved: Any
    reserved_range: tuple[Any, Any]
    device_total: Any
    device_total_range: tuple[Any, Any]


class AtPeak(NamedTuple):
    """The bytes of a breakdown that decide what is reserved: numbers, or arrays for a grid of recipes."""

    allocated: Any
    """All of them."""
    working: Any
    """Those that a step allocates and frees."""
    workspaces: Any


def working_bytes(components: Mapping[str, int]) -> int:
    """Return the bytes of a breakdown's components that a step allocates and frees."""
    return sum(bytes_ for name, bytes_ in components.items() if name not in PERSISTENT)


def with_context(low: Any, high: Any, compute_capability: str | None = None) -> tuple[Any, Any]:
    """Return the range of the device total for reserved bytes, or arrays of them, between ``low`` and ``high``."""
    context = context_of(compute_capability)
    return low + context.least, high + context.most


def reserve(
    components: Mapping[str, int], *, compute_capability: str | None = None, expandable_segments: bool = False
) -> Reserved:
    """Return the reserved memory and device total of a breakdown's components, as `reserve_at`."""
    at_peak = AtPeak(sum(components.values()), working_bytes(components), components.get("workspaces", 0))
    return reserve_at(at_peak, compute_capability=compute_capability, expandable_segments=expandable_segments)


def reserve_at(
    at_peak: AtPeak, *, compute_capability: str | None = None, expandable_segments: bool = False
) -> Reserved:
    """Return the reserved memory and device total of recipes on a GPU of ``compute_capability``.

    Low: no fragmentation, the smallest workspaces and CUDA context. High: the worst fragmentation with which replays
    ran, the largest workspaces and context. Point: no fragmentation, the workspaces of the components, the largest
    context.
    """
    percent = WORST_EXPANDABLE_PERCENT if expandable_segments else WORST_FRAGMENTATION_PERCENT
    allocated = at_peak.allocated
    tensors = allocated - at_peak.workspaces
    gaps = at_peak.working * percent // 100
    least, _, most = workspaces(compute_capability)
    reserved, low, high = map(_in_segments, (allocated, tensors + least, tensors + gaps + most))
    return Reserved(
        reserved=reserved,
        reserved_range=(low, high),
        device_total=device_total(allocated, compute_capability),
        device_total_range=with_context(low, high, compute_capability),
    )


def device_total(allocated_bytes: Any, compute_capability: str | None = None) -> Any:
    """Return the point estimate of the device total for ``allocated_bytes``, a number or an array."""
    return _in_segments(allocated_bytes) + context_of(compute_capability).most


def _in_segments(bytes_: Any) -> Any:
    return -(-bytes_ // SEGMENT_BYTES) * SEGMENT_BYTES
