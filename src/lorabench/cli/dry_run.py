"""`lorabench run --dry-run`: what a suite would train, what it is estimated to take, and whether it fits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from msgspec import Struct

from lorabench.bench.fit import predict_fit
from lorabench.bench.records import DeviceFacts
from lorabench.bench.suites import Planned, Suite
from lorabench.cli.listing import Column, as_table
from lorabench.cli.quantities import in_gib
from lorabench.estimator.breakdown import Breakdown
from lorabench.estimator.errors import UserError
from lorabench.estimator.memory import estimate_memory


class Row(Struct, frozen=True):
    """One recipe of the list."""

    label: str
    memory: Breakdown | None
    verdict: str
    """fits, tight, does not fit; or unknown, where there is no estimate."""
    reason: str | None = None
    """Why there is none."""


def dry_run(suite: Suite, device: DeviceFacts) -> str:
    """Return the list of the suite's recipes, for people."""
    rows = [_row(suite.labels()[planned.digest], planned, device) for planned in suite.recipes]
    runs = f"{len(rows)} recipe{'s' if len(rows) > 1 else ''}"
    if suite.repeats > 1:
        runs += f", {suite.repeats} times each"
    counted = Counter(row.verdict for row in rows)
    lines = [
        as_table(_columns(rows, device)),
        "",
        f"{runs}, {suite.steps} timed steps after {suite.warmup_steps} of warm-up",
        f"on {device.name} ({in_gib(device.memory_bytes)}): "
        + ", ".join(f"{verdict}: {count}" for verdict, count in counted.items()),
    ]
    lines += dict.fromkeys(f"unknown: {row.reason}" for row in rows if row.reason)
    return "\n".join(lines)


def _row(label: str, planned: Planned, device: DeviceFacts) -> Row:
    try:
        memory = estimate_memory(planned.spec, planned.recipe, device.kind)
    except UserError as error:
        return Row(label, None, "unknown", str(error))
    return Row(label, memory, predict_fit(memory, device))


def _columns(rows: Sequence[Row], device: DeviceFacts) -> list[Column]:
    allocated = [in_gib(row.memory.peak_allocated_bytes) if row.memory else "" for row in rows]
    columns = [
        Column("recipe", [row.label for row in rows], right=False),
        Column("peak allocated", allocated),
    ]
    if device.kind == "cuda":
        columns.append(Column("device total", [_total(row.memory) for row in rows]))
    return [*columns, Column("verdict", [row.verdict for row in rows], right=False)]


def _total(memory: Breakdown | None) -> str:
    if memory is None or memory.device_total_bytes is None:
        return ""
    return in_gib(memory.device_total_bytes)
