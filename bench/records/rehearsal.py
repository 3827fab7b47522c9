"""What a rehearsal of a recipe counted: memory alone."""

from __future__ import annotations

from typing import Self

from msgspec import Struct
from msgspec.structs import replace

from lorabench.bench.records.measurement import Measurement
from lorabench.estimator.memory.breakdown import Breakdown, Bytes
from lorabench.estimator.recipes.parameters import ParameterCounts


class Rehearsal(Struct, frozen=True, kw_only=True):
    """What the real CUDA libraries allocated for a recipe on a GPU that is not there.

    It has no times, losses or energy: a null GPU computes nothing.
    """

    parameters: ParameterCounts
    """Counted on the model that was built."""
    memory: Breakdown
    """As torch's caching allocator counts it. The device total is None: nobody knows the size of a CUDA context
    without the driver."""
    requested_peak_bytes: Bytes | None = None
    """Most bytes that tensors asked the allocator for, before it rounded them up to blocks."""
    active_peak_bytes: Bytes | None = None
    """Most bytes in blocks that were in use or waited for a stream."""
    loading_peak_bytes: Bytes | None = None
    """Most bytes allocated while the model was built."""
    evaluation_peak_bytes: Bytes | None = None
    """Most bytes allocated while the held-out loss was worked out."""

    @property
    def nvml_process_peak_bytes(self) -> None:
        """None: see ``memory``."""
        return

    @classmethod
    def of(cls, counted: Measurement) -> Self:
        """Return what a null GPU can know of what the harness read on it."""
        return cls(
            parameters=counted.parameters,
            memory=replace(counted.memory, device_total_bytes=None),
            requested_peak_bytes=counted.requested_peak_bytes,
            active_peak_bytes=counted.active_peak_bytes,
            loading_peak_bytes=counted.loading_peak_bytes,
            evaluation_peak_bytes=counted.evaluation_peak_bytes,
        )


Counted = Measurement | Rehearsal
"""What an allocator counted."""
