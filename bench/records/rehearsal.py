"""The result of a rehearsed recipe: memory only."""

from __future__ import annotations

from typing import Self

from msgspec import Struct
from msgspec.structs import replace

from lorabench.bench.records.measurement import Measurement
from lorabench.estimator.memory.breakdown import Breakdown, Bytes
from lorabench.estimator.recipes.parameters import ParameterCounts


class Rehearsal(Struct, frozen=True, kw_only=True):
    """The memory that a recipe allocated on a null GPU.

    It has no times, losses or energy: a null GPU computes nothing.
    """

    parameters: ParameterCounts
    """Counted on the built model."""
    memory: Breakdown
    """From torch's caching allocator. The device total is None: without a driver the size of a CUDA context is
    unknown."""
    requested_peak_bytes: Bytes | None = None
    """Peak bytes that tensors requested from the allocator, before rounding to blocks."""
    active_peak_bytes: Bytes | None = None
    """Peak bytes in blocks that were in use or waited for a stream."""
    loading_peak_bytes: Bytes | None = None
    """Peak allocated bytes while the model was built."""
    evaluation_peak_bytes: Bytes | None = None
    """Peak allocated bytes while the held-out loss was computed."""

    @property
    def nvml_process_peak_bytes(self) -> None:
        """None: see ``memory``."""
        return

    @classmethod
    def of(cls, counted: Measurement) -> Self:
        """Return the part of the harness' readings that is valid on a null GPU."""
        return cls(
            parameters=counted.parameters,
            memory=replace(counted.memory, device_total_bytes=None),
            requested_peak_bytes=counted.requested_peak_bytes,
            active_peak_bytes=counted.active_peak_bytes,
            loading_peak_bytes=counted.loading_peak_bytes,
            evaluation_peak_bytes=counted.evaluation_peak_bytes,
        )


Counted = Measurement | Rehearsal
"""A result with an allocator's counters."""
