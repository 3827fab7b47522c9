"""`lorabench rehearse SUITE|MODEL`: the harness itself, on a null GPU."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

from lorabench.bench.null_gpu.environment import null_gpu_environment
from lorabench.bench.records.record import RunRecord
from lorabench.bench.records.run_settings import Settings
from lorabench.bench.running.runner import run_suite
from lorabench.cli.listing import Column, as_json, as_table, folded
from lorabench.cli.progress import watch
from lorabench.cli.rehearse import NOTHING_REHEARSED, OUT_OF_MEMORY
from lorabench.cli.run import suite_of
from lorabench.estimator.devices.device import Device
from lorabench.estimator.quantities import in_gib


def rehearse_recipes(
    target: str,
    options: dict[str, Any],
    device: Device,
    output: Path | None,
    *,
    steps: int,
    snapshot: bool,
    format_: str,
) -> int:
    """Rehearse each recipe of a suite, or one model, and print what it takes; return the exit code.

    Records go to ``output``, and records of the same rehearsal that are there are kept; None writes none.
    """
    suite = suite_of(target, options)
    with tempfile.TemporaryDirectory(prefix="lorabench-") as scratch:
        notes = Path(scratch) / "notes"
        notes.mkdir()
        finished = run_suite(
            suite,
            output or Path(scratch) / "records",
            settings=Settings(
                device="cuda",
                steps=max(1, steps),
                warmup_steps=1,
                least_seconds=0.0,
                timed=False,
                memory_snapshot=snapshot,
            ),
            device="cuda",
            resume=True,
            watcher=watch(0 if format_ == "table" else -1),
            environment=null_gpu_environment(device, notes),
        )
    if format_ == "json":
        click.echo(as_json(finished.records))
    else:
        click.echo(_as_text(finished.records, suite.labels(), device, output))
    outcomes = {record.outcome for record in finished.records}
    return 0 if "ok" in outcomes else OUT_OF_MEMORY if outcomes == {"oom"} else NOTHING_REHEARSED


def _as_text(records: tuple[RunRecord, ...], labels: dict[str, str], device: Device, output: Path | None) -> str:
    counted = [(record, record.rehearsal) for record in records if record.rehearsal is not None]
    lines = []
    if counted:
        lines.append(
            as_table(
                [
                    Column("recipe", [labels[record.digest] for record, _ in counted], right=False, folds=True),
                    Column("allocated", [in_gib(one.memory.peak_allocated_bytes) for _, one in counted]),
                    Column("reserved", [in_gib(one.memory.peak_reserved_bytes or 0) for _, one in counted]),
                    Column("in", [one.memory.phase for _, one in counted], right=False),
                    Column("estimate", [_error(record) for record, _ in counted]),
                ]
            )
        )
    for record in records:
        if record.rehearsal is None:
            lines += folded(f"{labels[record.digest]}: {record.outcome} {record.message}", hanging="    ")
    for assumption in device.assumptions:
        lines += folded(f"assumed: {assumption}")
    lines.append(f"rehearsed on {device.name}, {in_gib(device.usable_bytes)} usable; the CUDA context is not counted")
    if output is not None:
        lines.append(f"Records are in {output}")
    return "\n".join(["", *lines])


def _error(record: RunRecord) -> str:
    """Return how far the estimate is off from the allocated peak."""
    if record.prediction is None or record.rehearsal is None:
        return ""
    off = record.prediction.memory.peak_allocated_bytes / record.rehearsal.memory.peak_allocated_bytes - 1
    return f"{off:+.3%}"
