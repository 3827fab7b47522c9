"""Trace the recipes of runs, to compare with estimate and measurement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lorabench.bench.records.record import RunRecord
from lorabench.estimator.errors import UserError
from lorabench.estimator.models.read_config import read_config
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.reports.runs import Run

if TYPE_CHECKING:
    from lorabench.estimator.trace.trace import Trace


def add_traces(runs: Sequence[Run], on_progress: Callable[[str], None]) -> tuple[list[Run], list[str]]:
    """Return ``runs`` with the traces of their recipes, and the reasons for missing traces.

    Each recipe is traced with the installed torch: once for each device that it ran on, and for each kind of
    segments that the allocator had there. It takes seconds.

    Raises:
        ImportError: torch, transformers, peft or bitsandbytes is not installed.
    """
    traces: dict[tuple[str, str, str | None], Trace | str] = {}
    for number, run in enumerate(runs, 1):
        setting = _setting(run.record)
        if setting not in traces:
            on_progress(f"tracing {run.full_name}, run {number} of {len(runs)}")
            traces[setting] = _trace(run.record)
    traced, refused = [], []
    for run in runs:
        trace = traces[_setting(run.record)]
        if isinstance(trace, str):
            refused.append(f"{run.full_name}: {trace}")
            traced.append(run)
        else:
            traced.append(replace(run, trace=trace))
    return traced, refused


def _setting(record: RunRecord) -> tuple[str, str, str | None]:
    """Return what a record's trace depends on: the recipe, the device, and the allocator's settings."""
    return record.digest, record.device.name, record.environment.allocator


def _trace(record: RunRecord) -> Trace | str:
    """Return the trace of a record's recipe, or the reason for its absence."""
    from lorabench.estimator.trace.trace import trace

    try:
        spec, device = read_config(record.model_config, record.recipe.model), record.device
        return trace(
            ResolvedRecipe(spec, record.recipe),
            backend=device.backend,
            compute_capability=device.compute_capability,
            multiprocessors=device.multiprocessors,
            allocator=device.allocator_settings(record.environment.allocator),
        )
    except UserError as error:
        return str(error)
