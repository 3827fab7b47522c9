"""Run records for the check: the sample record with what a test changes in its measurement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec.structs import replace

from lorabench.bench.records.record import RunRecord, write_record
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


def runs(*medians: float, **changes: Any) -> list[RunRecord]:
    """Return a run for each of ``medians``, whose steps scatter by half a percent about it."""
    shares = [1 + 0.001 * place for place in range(-5, 6)]
    return [
        record(repeat=i, step_seconds=[one * share for share in shares], **changes) for i, one in enumerate(medians)
    ]


def repeats(count: int, **changes: Any) -> list[RunRecord]:
    return [record(repeat=repeat, **changes) for repeat in range(count)]


def steady(factor: float = 1.0, **changes: Any) -> list[RunRecord]:
    """Return three runs whose medians are within a thousandth of ``factor`` times the sample's."""
    return [
        record(repeat=repeat, step_seconds=times(factor * share), **changes)
        for repeat, share in enumerate((1.0, 1.001, 1 / 1.001))
    ]


def folder(path: Path, *records: RunRecord) -> str:
    """Write ``records`` into the folder at ``path``, and return its name."""
    for one in records:
        write_record(path, one)
    return str(path)
