"""The table at the end of a probed suite: the error of each recipe's estimate on this GPU, and the failures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from lorabench.bench.records.record import RunRecord
from lorabench.cli.listing import Column, as_table, folded
from lorabench.estimator.quantities import in_gib


def errors_on_gpu(records: Sequence[RunRecord], labels: Mapping[str, str]) -> str:
    """Return a row for each recipe that ran, worst allocated error first, then a line for each that did not.

    Errors are (estimate - measured) / measured of peak bytes: requested by tensors, allocated in blocks, reserved in
    segments. The context is the bytes that NVML counts beyond reserved. Start is the time from the request for a worker
    to the start of the measurement. A rehearsal knows neither context nor start.
    """
    rows = sorted((record for record in records if record.counted and record.prediction), key=_off, reverse=True)
    lines = []
    if rows:
        cells = {name: [cell(record) for record in rows] for name, cell in COLUMNS.items()}
        named = Column("recipe", [labels[record.digest] for record in rows], right=False, folds=True)
        lines.append(as_table([named, *(Column(name, column) for name, column in cells.items() if any(column))]))
    for record in records:
        if record.counted is None:
            reason = f" {record.message}" if record.message else ""
            lines += folded(f"{labels[record.digest]}: {record.outcome}{reason}", hanging="    ")
    return "\n".join(lines)


def _peaks(record: RunRecord, which: str) -> tuple[int | None, int | None]:
    """Return the estimated peak, and the allocator's."""
    assert record.counted is not None
    assert record.prediction is not None
    estimated, counted = record.prediction.memory, record.counted.memory
    return {
        "requested": (estimated.peak_requested_bytes, record.counted.requested_peak_bytes),
        "allocated": (estimated.peak_allocated_bytes, counted.peak_allocated_bytes),
        "reserved": (estimated.peak_reserved_bytes, counted.peak_reserved_bytes),
    }[which]


def _off(record: RunRecord) -> float:
    estimated, measured = _peaks(record, "allocated")
    return abs((estimated or 0) / measured - 1) if measured else 0.0


def _error(record: RunRecord, which: str) -> str:
    estimated, measured = _peaks(record, which)
    return "" if estimated is None or not measured else f"{estimated / measured - 1:+.3%}"


def _context(record: RunRecord) -> str:
    measured = record.measurement
    if measured is None:
        return ""
    process, reserved = measured.nvml_process_peak_bytes, measured.memory.peak_reserved_bytes
    return "" if process is None or reserved is None else in_gib(process - reserved)


def _start(record: RunRecord) -> str:
    measured = record.measurement
    if measured is None or record.seconds is None or not measured.stage_seconds:
        return ""
    return f"{record.seconds - sum(measured.stage_seconds.values()):.1f} s"


COLUMNS: dict[str, Callable[[RunRecord], str]] = {
    "requested": lambda record: _error(record, "requested"),
    "allocated": lambda record: _error(record, "allocated"),
    "reserved": lambda record: _error(record, "reserved"),
    "context": _context,
    "start": _start,
}
"""Column → its cell for a record; columns without any are left out."""
