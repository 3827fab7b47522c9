"""What the runner asks of a worker process, and what the worker answers."""

from __future__ import annotations

from msgspec import Struct

from lorabench.bench.records.measurement import Measurement
from lorabench.bench.records.record import Memory, Outcome
from lorabench.bench.records.run_settings import Settings
from lorabench.estimator.models.spec import ModelSpec
from lorabench.estimator.recipes.recipe import Recipe


class Job(Struct, frozen=True, kw_only=True):
    """One recipe to measure."""

    recipe: Recipe
    spec: ModelSpec
    settings: Settings
    snapshot_path: str | None = None
    """Where the memory snapshot goes, where one is asked for."""


class JobResult(Struct, frozen=True, kw_only=True):
    """How it went."""

    outcome: Outcome
    out_of: Memory | None = None
    """Which memory ran out, where the outcome is oom."""
    message: str | None = None
    """What went wrong, or is worth knowing, in one line."""
    traceback: str | None = None
    measurement: Measurement | None = None
