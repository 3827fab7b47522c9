"""Rehearse recipes: run lorabench's own training loop and meters on a null GPU."""

from __future__ import annotations

import tempfile
from pathlib import Path

from msgspec import Struct

from lorabench.bench.null_gpu.environment import null_gpu_environment
from lorabench.bench.null_gpu.inside import BEGIN
from lorabench.bench.records.record import RunRecord
from lorabench.bench.records.run_settings import Settings
from lorabench.bench.rehearsing import stages
from lorabench.bench.rehearsing.result import Noticed, read_launches, read_noticed, read_refused
from lorabench.bench.running.runner import TIMEOUT_SECONDS, Watcher, run_suite
from lorabench.bench.suites.suite import Suite
from lorabench.estimator.devices.device import Device


class RecipesRehearsal(Struct, frozen=True, kw_only=True):
    """The result of a suite's rehearsal on a null GPU."""

    gpu: str
    gpu_memory_bytes: int
    gpu_usable_bytes: int
    """Memory that a process can use: the limit at which the null GPU runs out."""
    assumptions: tuple[str, ...]
    """Assumptions about the device and the recipes."""
    records: tuple[RunRecord, ...]
    """In the order of the suite."""
    noticed: tuple[Noticed, ...]
    """Guessed values that the training used for a decision."""
    refused: tuple[str, ...]
    """CUDA functions that were called and that cannot be rehearsed."""
    launches: dict[str, int] = {}
    """Kernel → launches by all recipes that ran, if they were counted."""


def rehearse_suite(
    suite: Suite,
    device: Device,
    folder: Path,
    output: Path | None = None,
    *,
    steps: int = 2,
    snapshot: bool = False,
    launches: bool = False,
    timeout_seconds: float = TIMEOUT_SECONDS,
    watcher: Watcher | None = None,
) -> RecipesRehearsal:
    """Train each recipe of ``suite`` on a null GPU, in its own process, and return the records.

    Args:
        device: the GPU, from the catalogue.
        folder: an empty folder for what the null GPU notices.
        output: folder for the records; None writes none. A recipe that already has a record there is not run again.
        steps: timed steps, at least 1. A run does some more, for its other measurements.
        snapshot: whether to write the allocator's snapshot of one step beside each record.
        launches: whether to count launches by kernel.
        timeout_seconds: time after which a recipe is ended.

    Raises:
        UserError: as `run_suite` and `null_gpu_environment` do.
    """
    variables = null_gpu_environment(device, folder, count_launches=launches)
    with tempfile.TemporaryDirectory(prefix="lorabench-") as scratch:
        finished = run_suite(
            suite,
            output or Path(scratch),
            settings=Settings(
                backend="cuda",
                steps=max(1, steps),
                warmup_steps=1,
                least_seconds=0.0,
                timed=False,
                memory_snapshot=snapshot,
            ),
            device="cuda",
            resume=True,
            timeout_seconds=timeout_seconds,
            watcher=watcher,
            environment=variables | {BEGIN: stages.__name__},
        )
    return RecipesRehearsal(
        gpu=device.name,
        gpu_memory_bytes=device.memory_bytes,
        gpu_usable_bytes=device.usable_bytes,
        assumptions=(*device.assumptions, *suite.assumptions),
        records=finished.records,
        noticed=tuple(read_noticed(folder)),
        refused=tuple(read_refused(folder)),
        launches=read_launches(folder) if launches else {},
    )
