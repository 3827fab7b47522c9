"""`lorabench run --dry-run`: list the recipes of a suite with estimated memory, time and verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from lorabench.bench.machine.device_rates import device_rates
from lorabench.bench.records.record import DeviceFacts
from lorabench.bench.records.run_settings import Settings
from lorabench.bench.running.fit import bytes_for_recipes, predict_fit
from lorabench.bench.suites.suite import Suite
from lorabench.cli.listing import Column, as_table, folded
from lorabench.cli.speed import in_time
from lorabench.estimator.answers.many import Outline, outlines
from lorabench.estimator.errors import UserError
from lorabench.estimator.quantities import in_gib
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.training.model import refuse_missing_kernels

UNKNOWN = "unknown"


class Row(NamedTuple):
    """One recipe of the list."""

    label: str
    estimated: Outline | None = None
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
        on_progress: called with the stage.
        here: the device is this machine's.
        assumptions: assumptions about the device, to be printed.
    """
    on_progress("naming the recipes")
    rows = _rows(suite, device, on_progress, here)
    on_progress("listing the recipes")
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


def _rows(suite: Suite, facts: DeviceFacts, on_progress: Callable[[str], None], here: bool) -> list[Row]:
    labels, rates, there = suite.labels(), device_rates(facts), bytes_for_recipes(facts)
    rows: list[Row] = []
    runs: list[ResolvedRecipe] = []
    for resolved in suite.recipes:
        label = labels[resolved.digest]
        try:
            if here:
                refuse_missing_kernels(resolved.recipe, facts.backend)
        except UserError as error:
            rows.append(Row(label, verdict="cannot run", reason=str(error)))
        else:
            rows.append(Row(label))
            runs.append(resolved)
    estimates = iter(
        outlines(
            runs,
            facts.backend,
            rates.device,
            rates.calibration,
            lambda done: on_progress(f"estimating recipe {done + 1:,} of {len(runs):,}"),
        )
    )
    return [row if row.reason else _with_estimate(row, next(estimates), there) for row in rows]


def _with_estimate(row: Row, estimated: Outline | UserError, there: int) -> Row:
    if isinstance(estimated, UserError):
        return row._replace(reason=str(estimated))
    return row._replace(estimated=estimated, verdict=predict_fit(estimated, there))


def _training_seconds(row: Row, settings: Settings) -> float | None:
    """Return the time of all steps at the typical speed; None if they cannot run or the speed is unknown."""
    step = None if row.estimated is None else row.estimated.step_seconds
    if step is None or row.verdict == "does not fit":
        return None
    return settings.warmup_steps * step + max(settings.steps * step, settings.least_seconds)


def _columns(rows: Sequence[Row], times: Sequence[float | None], device: DeviceFacts) -> list[Column]:
    columns = [
        Column("recipe", [row.label for row in rows], right=False, folds=True),
        Column("allocated", [in_gib(row.estimated.allocated_bytes) if row.estimated else "" for row in rows]),
    ]
    if device.backend == "cuda":
        totals = [row.estimated.device_total_bytes if row.estimated else None for row in rows]
        columns.append(Column("device total", [in_gib(total) if total is not None else "" for total in totals]))
    if any(seconds is not None for seconds in times):
        columns.append(Column("training", [in_time(seconds) if seconds is not None else "" for seconds in times]))
    return [*columns, Column("verdict", [row.verdict for row in rows], right=False)]
