"""Job and result: the messages between runner and worker."""

from __future__ import annotations

from msgspec import Struct

from lorabench.bench.records.measurement import Measurement
from lorabench.bench.records.record import Memory, Outcome
from lorabench.bench.records.run_settings import Settings
from lorabench.estimator.recipes.resolved import ResolvedRecipe


class Job(Struct, frozen=True, kw_only=True):
    """One recipe to measure."""

    resolved: ResolvedRecipe
    settings: Settings
    snapshot_path: str | None = None
    """File for the memory snapshot; None: no snapshot."""


class JobResult(Struct, frozen=True, kw_only=True):
    """The result of a job."""

    outcome: Outcome
    out_of: Memory | None = None
    """Which memory ran out, if the outcome is oom."""
    message: str | None = None
    """One line: what went wrong, or a remark."""
    traceback: str | None = None
    measurement: Measurement | None = None
