"""The table that closes a probed suite: how far each recipe's estimate is off on this GPU, and what failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lorabench.bench.records.record import RunRecord
from lorabench.cli.listing import Column, as_table, folded
from lorabench.estimator.quantities import in_gib


def errors_on_gpu(records: Sequence[RunRecord], labels: Mapping[str, str]) -> str:
    """Return a row for each measured recipe, worst allocated error first, then a line for each that was not.

    Errors are (estimate - measured) / measured, of the peaks in bytes: requested is what tensors ask the allocator for,
    allocated its blocks, reserved its segments. The context is what NVML counts beyond reserved. Start is the time from
    the request for a worker to the measurement's begin.
    """
    rows = sorted((record for record in records if record.measurement and record.prediction), key=_off, reverse=True)
    lines = []
    if rows:
        lines.append(
            as_table(
                [
                    Column("recipe", [labels[record.digest] for record in rows], right=False, folds=True),
                    Column("requested", [_error(record, "requested") for record in rows]),
                    Column("allocated", [_error(record, "allocated") for record in rows]),
                    Column("reserved", [_error(record, "reserved") for record in rows]),
                    Column("context", [_context(record) for record in rows]),
                    Column("start", [_start(record) for record in rows]),
                ]
            )
        )
    for record in records:
        if record.measurement is None:
            reason = f" {record.message}" if record.message else ""
            lines += folded(f"{labels[record.digest]}: {record.outcome}{reason}", hanging="    ")
    return "\n".join(lines)


def _peaks(record: RunRecord, which: str) -> tuple[int | None, int | None]:
    """Return the estimated and the measured peak."""
    assert record.measurement is not None
    assert record.prediction is not None
    estimated, measured = record.prediction.memory, record.measurement.memory
    return {
        "requested": (estimated.peak_allocated_bytes, record.measurement.requested_peak_bytes),
        "allocated": (estimated.peak_allocated_bytes, measured.peak_allocated_bytes),
        "reserved": (estimated.peak_reserved_bytes, measured.peak_reserved_bytes),
    }[which]


def _off(record: RunRecord) -> float:
    estimated, measured = _peaks(record, "allocated")
    return abs((estimated or 0) / measured - 1) if measured else 0.0


def _error(record: RunRecord, which: str) -> str:
    estimated, measured = _peaks(record, which)
    return "" if estimated is None or not measured else f"{estimated / measured - 1:+.3%}"


def _context(record: RunRecord) -> str:
    measured = record.measurement
    assert measured is not None
    process, reserved = measured.nvml_process_peak_bytes, measured.memory.peak_reserved_bytes
    return "" if process is None or reserved is None else in_gib(process - reserved)


def _start(record: RunRecord) -> str:
    measured = record.measurement
    if measured is None or record.seconds is None or not measured.stage_seconds:
        return ""
    return f"{record.seconds - sum(measured.stage_seconds.values()):.1f} s"
