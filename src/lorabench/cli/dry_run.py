"""`lorabench run --dry-run`: list the recipes of a suite with estimated memory, time and verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from msgspec import Struct

from lorabench.bench.machine.device_rates import DeviceRates, device_rates
from lorabench.bench.records.record import DeviceFacts
from lorabench.bench.records.run_settings import Settings
from lorabench.bench.running.fit import predict_fit
from lorabench.bench.suites.suite import Suite
from lorabench.cli.listing import Column, as_table, folded
from lorabench.cli.speed import in_time
from lorabench.estimator.closed_form.memory import estimate_memory
from lorabench.estimator.errors import UserError
from lorabench.estimator.memory.breakdown import Breakdown
from lorabench.estimator.quantities import in_gib
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.training.model import refuse_missing_kernels

UNKNOWN = "unknown"
SAID_EACH = 100
"""Recipes between two reports of progress: about a tenth of a second."""


class Row(Struct, frozen=True, kw_only=True):
    """One recipe of the list."""

    label: str
    memory: Breakdown | None = None
    step_seconds: float | None = None
    """Typical seconds of a step; None if unknown."""
    verdict: str = UNKNOWN
    """fits, tight, does not fit, or cannot run."""
    reason: str | None = None
    """Why there is no estimate, or why the recipe cannot run."""


def dry_run(
    suite: Suite,
    settings: Settings,
    device: DeviceFacts,
    on_progress: Callable[[str], None],
    *,
    here: bool,
    assumptions: Sequence[str] = (),
) -> str:
    """Return the suite's recipes as a table for ``device``.

    Args:
        on_progress: called with the place in the suite every `SAID_EACH` recipes.
        here: the device is this machine's.
        assumptions: assumptions about the device, to be printed.
    """
    on_progress("naming the recipes")
    labels = suite.labels()
    rates = device_rates(device)
    rows = []
    for number, resolved in enumerate(suite.recipes, 1):
        if number % SAID_EACH == 1:
            on_progress(f"estimating recipe {number:,} of {len(suite.recipes):,}")
        rows.append(_row(labels[resolved.digest], resolved, device, rates, here))
    times = [_training_seconds(row, settings) for row in rows]
    total = sum(seconds for seconds in times if seconds is not None) * suite.repeats
    counted = Counter(row.verdict for row in rows)
    lines = [
        *([*folded(suite.description), ""] if suite.description else []),
        as_table(_columns(rows, times, device)),
        "",
        f"{len(rows)} recipe{'s' if len(rows) > 1 else ''}"
        + (f", {suite.repeats} times each" if suite.repeats > 1 else "")
        + f", {settings.warmup_steps} warm-up and {settings.steps} timed steps",
        f"on {device.name} ({in_gib(device.memory_bytes)}): "
        + ", ".join(f"{verdict}: {count}" for verdict, count in counted.items()),
    ]
    if any(seconds is not None for seconds in times):
        lines.append(f"training takes about {in_time(total)} in all, plus loading")
    else:
        lines.append("training time unknown: run lorabench calibrate on the device")
    lines += ["\n".join(folded(f"assumed: {assumed}")) for assumed in (*suite.assumptions, *assumptions)]
    lines += dict.fromkeys("\n".join(folded(f"{row.verdict}: {row.reason}")) for row in rows if row.reason)
    return "\n".join(lines)


def _row(label: str, resolved: ResolvedRecipe, facts: DeviceFacts, rates: DeviceRates, here: bool) -> Row:
    if here:
        try:
            refuse_missing_kernels(resolved.recipe, facts.backend)
        except UserError as error:
            return Row(label=label, verdict="cannot run", reason=str(error))
    try:
        memory = estimate_memory(resolved, facts.backend, rates.device.compute_capability)
    except UserError as error:
        return Row(label=label, reason=str(error))
    seconds = rates.step_seconds(resolved)
    return Row(label=label, memory=memory, step_seconds=seconds, verdict=predict_fit(memory, facts))


def _training_seconds(row: Row, settings: Settings) -> float | None:
    """Return the time of all steps at the typical speed; None if they cannot run or the speed is unknown."""
    step = row.step_seconds
    if step is None or row.verdict == "does not fit":
        return None
    return settings.warmup_steps * step + max(settings.steps * step, settings.least_seconds)


def _columns(rows: Sequence[Row], times: Sequence[float | None], device: DeviceFacts) -> list[Column]:
    columns = [
        Column("recipe", [row.label for row in rows], right=False, folds=True),
        Column("allocated", [in_gib(row.memory.peak_allocated_bytes) if row.memory else "" for row in rows]),
    ]
    if device.backend == "cuda":
        totals = [row.memory.device_total_bytes if row.memory else None for row in rows]
        columns.append(Column("device total", [in_gib(total) if total is not None else "" for total in totals]))
    if any(seconds is not None for seconds in times):
        columns.append(Column("training", [in_time(seconds) if seconds is not None else "" for seconds in times]))
    return [*columns, Column("verdict", [row.verdict for row in rows], right=False)]
