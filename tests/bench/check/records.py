"""Run records for the check: the sample record with what a test changes in its measurement."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from lorabench.bench.records.record import RunRecord
from tests.sample_records import STEP_SECONDS, sample_record


def times(factor: float) -> tuple[float, ...]:
    return tuple(factor * seconds for seconds in STEP_SECONDS)


def record(
    *,
    repeat: int = 0,
    seed: int | None = None,
    unstable: tuple[str, ...] = (),
    reserved: int | None = None,
    nvml: int | None = None,
    **changes: Any,
) -> RunRecord:
    """Return the sample record with ``changes``; every repeat has a seed of its own, unless one is given."""
    made = sample_record(**changes)
    made = replace(made, repeat=repeat, seed=repeat if seed is None else seed)
    if made.measurement is None:
        return made
    memory = made.measurement.memory
    if reserved is not None:
        memory = replace(memory, peak_reserved_bytes=reserved)
    measurement = replace(made.measurement, memory=memory, unstable=unstable, nvml_process_peak_bytes=nvml)
    return replace(made, measurement=measurement)


def repeats(count: int, **changes: Any) -> list[RunRecord]:
    return [record(repeat=repeat, **changes) for repeat in range(count)]
