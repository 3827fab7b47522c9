"""What CUDA's caching allocator takes beyond the tensors, and the process beyond the allocator: points and ranges.

The point estimate has no fragmentation. The range goes up to the worst fragmentation that was seen when the allocator
was replayed over traced steps: 80 recipes of catalogue models, torch 2.13 (`benchmarks/reserved.py`, seeds 0 and 1).
It is measured against the working bytes, since what stays for the whole training leaves no gaps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from lorabench.estimator.memory.workspaces import workspaces
from lorabench.estimator.quantities import MIB

SEGMENT_BYTES = 2 * MIB
"""The caching allocator takes memory from the device in multiples of this (torch, c10/cuda/CUDACachingAllocator.h)."""
CUDA_CONTEXT_BYTES = 600 * MIB
"""What a process takes on a GPU before its first tensor: driver context and loaded kernels. 0.3 to 0.6 GiB is seen,
by driver and GPU; this is the upper end, so that what is said to fit does."""
SMALLEST_CUDA_CONTEXT_BYTES = 300 * MIB
"""The lower end of it."""

PERSISTENT = ("weights", "quantized_weights", "adapters", "optimizer_states", "workspaces")
"""Components that stay from step to step; the others are working bytes, which come and go."""
WORST_FRAGMENTATION_PERCENT = 61
"""Most that a replay reserved above allocated, in percent of the working bytes at the peak, with room to do so. On a
device without that room the allocator gives segments back before it fails: the same replays ran in up to 42 percent."""
WORST_EXPANDABLE_PERCENT = 10
"""Most that a replay with ``expandable_segments:True`` needed above allocated, in percent of the working bytes."""
EXPANDABLE_SEGMENTS = "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
"""The environment variable that makes the allocator fragment less."""


class Reserved(NamedTuple):
    """What is taken from the device, in bytes; each range is (low, high)."""

    reserved: int
    reserved_range: tuple[int, int]
    device_total: int
    device_total_range: tuple[int, int]


def working_bytes(components: Mapping[str, int]) -> int:
    """Return the bytes that come and go in a step, of a breakdown's components."""
    return sum(bytes_ for name, bytes_ in components.items() if name not in PERSISTENT)


def with_context(low: Any, high: Any) -> tuple[Any, Any]:
    """Return the range of the device total for reserved bytes, or arrays of them, between ``low`` and ``high``."""
    return low + SMALLEST_CUDA_CONTEXT_BYTES, high + CUDA_CONTEXT_BYTES


def reserve(
    components: Mapping[str, int], *, compute_capability: str | None = None, expandable_segments: bool = False
) -> Reserved:
    """Return what a GPU of ``compute_capability`` gives the allocator and the process for a breakdown's components.

    Low: no fragmentation, the smallest workspaces and CUDA context. High: the worst fragmentation seen, the largest
    workspaces and context. Point: no fragmentation, the workspaces of the components, the largest context. With
    ``expandable_segments``, high is what the replays needed, not all that they kept.
    """
    percent = WORST_EXPANDABLE_PERCENT if expandable_segments else WORST_FRAGMENTATION_PERCENT
    allocated = sum(components.values())
    tensors = allocated - components.get("workspaces", 0)
    gaps = working_bytes(components) * percent // 100
    least, _, most = workspaces(compute_capability)
    reserved, low, high = map(_in_segments, (allocated, tensors + least, tensors + gaps + most))
    return Reserved(
        reserved=reserved,
        reserved_range=(low, high),
        device_total=device_total(allocated),
        device_total_range=with_context(low, high),
    )


def device_total(allocated_bytes: Any) -> Any:
    """Return the point estimate of what is taken from the device, of what tensors take (a number or an array)."""
    return _in_segments(allocated_bytes) + CUDA_CONTEXT_BYTES


def _in_segments(bytes_: Any) -> Any:
    return -(-bytes_ // SEGMENT_BYTES) * SEGMENT_BYTES
