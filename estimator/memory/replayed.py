"""What a replay of CUDA's caching allocator counts, and a breakdown with it: of the closed form and of the trace."""

from __future__ import annotations

from typing import NamedTuple

from msgspec.structs import replace

from lorabench.estimator.memory.allocator_settings import DEFAULTS, AllocatorSettings
from lorabench.estimator.memory.breakdown import Breakdown
from lorabench.estimator.memory.reserved import with_context


class OutOfMemory(NamedTuple):
    """The request that the device had no room for, after the allocator gave its cached segments back."""

    phase: str
    bytes: int


class Replayed(NamedTuple):
    """What the allocator counts over steady steps, in bytes."""

    allocated: int
    """``torch.cuda.max_memory_allocated``: whole blocks."""
    reserved: int
    """``torch.cuda.max_memory_reserved``."""
    phase_peaks: dict[str, int]
    """Phase → most allocated in it; of ``loaded`` and ``adapted``, what stays at their end."""
    out_of_memory: OutOfMemory | None = None


def with_blocks(
    memory: Breakdown,
    replayed: Replayed,
    settings: AllocatorSettings = DEFAULTS,
    compute_capability: str | None = None,
) -> Breakdown:
    """Return ``memory``, which counts what tensors ask for, with what the allocator with ``settings`` makes of it.

    The device total has the context of a GPU of ``compute_capability``.

    Blocks beyond their tensors become the component ``rounding``.
    """
    least, most = with_context(replayed.reserved, replayed.reserved, compute_capability)
    rounding = max(replayed.allocated - memory.peak_allocated_bytes, 0)
    return replace(
        memory,
        components=memory.components | {"rounding": rounding},
        peak_allocated_bytes=memory.peak_allocated_bytes + rounding,
        phase_peaks_bytes=memory.phase_peaks_bytes | replayed.phase_peaks,
        peak_reserved_bytes=replayed.reserved,
        peak_reserved_range_bytes=None,
        device_total_bytes=most,
        device_total_range_bytes=(least, most),
        allocator_settings=settings.text,
    )
