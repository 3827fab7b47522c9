"""The result of a replay of CUDA's caching allocator, for the closed form and for the trace."""

from __future__ import annotations

from typing import NamedTuple

from msgspec.structs import replace

from lorabench.estimator.memory.allocator_settings import DEFAULTS, AllocatorSettings
from lorabench.estimator.memory.breakdown import Breakdown
from lorabench.estimator.memory.reserved import with_context

EMPTIED = 3
"""Steps that empty the cache and are run. The third finds what the second left, as later ones do."""


class OutOfMemory(NamedTuple):
    """The allocation that failed, after the allocator had released its cached segments."""

    phase: str
    bytes: int


class Replayed(NamedTuple):
    """What the allocator counts over steady steps, in bytes."""

    allocated: int
    """``torch.cuda.max_memory_allocated``: whole blocks."""
    reserved: int
    """``torch.cuda.max_memory_reserved``."""
    phase_peaks: dict[str, int]
    """Phase → maximum of the allocated bytes; for ``loaded`` and ``adapted`` the bytes that remain at the end."""
    out_of_memory: OutOfMemory | None = None


def distinct_steps(count: int, steady_step: int, empty_cache_steps: int | None) -> list[int]:
    """Return the numbers, from 0, of the steps that are run for all: the others repeat one of them.

    They are the first ``count`` steps. If the cache is emptied every ``empty_cache_steps`` steps, they are also up to
    ``count`` steps from each of `EMPTIED` steps that empty it, the first of which is the last one before the
    optimizer's ``steady_step`` (of `Optimizer`).
    """
    steps = {*range(count)}
    if empty_cache_steps is not None:
        first = (steady_step - 2) // empty_cache_steps  # steady steps are numbered from 1, and the earliest is 2
        for number in range(first, first + EMPTIED):
            start = number * empty_cache_steps
            steps.update(range(start, start + min(count, empty_cache_steps)))
    return sorted(steps)


def with_blocks(
    memory: Breakdown,
    replayed: Replayed,
    settings: AllocatorSettings = DEFAULTS,
    compute_capability: str | None = None,
) -> Breakdown:
    """Return ``memory``, which counts what tensors ask for, with what the allocator with ``settings`` makes of it.

    The device total has the context of a GPU of ``compute_capability``.

    ``memory`` counts the bytes that tensors request. The rest of their blocks becomes the component ``rounding``.
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
