"""The meter of a CPU. There is no allocator with counters, so it counts live storages; the kernel reports RAM."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING

from msgspec.structs import replace

from lorabench.bench.measuring.meters import core_waits, resident_memory
from lorabench.bench.measuring.meters.counted_step import count_step, thinned
from lorabench.bench.measuring.meters.meter import Readings, Timeline
from lorabench.estimator.memory.breakdown import PHASES, Breakdown
from lorabench.estimator.models.spec import ModelSpec
from lorabench.estimator.trace.model_tensors import model_bytes
from lorabench.estimator.trace.storages import StorageLedger

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lorabench.estimator.training.step import Batch, TrainingStep


class CpuMeter:
    """A `Meter` for this process on the CPU."""

    def __init__(self) -> None:
        self.readings = Readings()
        self.device_name: str | None = None
        self._marks: list[float] = []
        self._counted: StorageLedger | None = None

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Count storages while the model is built. Storages made by other threads (reading weights) are missed."""
        with _counting("loaded") as peak:
            yield
        self.readings.loading_peak_bytes = peak()

    def held_bytes(self, model: nn.Module) -> int:
        """Return the bytes of the storages of ``model``."""
        return model_bytes(model, "cpu")

    @contextmanager
    def evaluating(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Count storages made inside, on top of ``model`` and the states of ``optimizer``."""
        with _counting("forward", model, optimizer) as peak:
            yield
        self.readings.evaluation_peak_bytes = max(peak(), self.readings.evaluation_peak_bytes or 0)

    def settle(self) -> None:
        """Do nothing: on a CPU the C library decides when freed memory returns to the system."""

    def mark(self) -> None:
        """Record the time."""
        self._marks.append(time.perf_counter())

    def laps(self) -> list[float]:
        """Return the seconds between successive marks, and clear them."""
        marks, self._marks = self._marks, []
        return [end - start for start, end in pairwise(marks)]

    @contextmanager
    def steady(self) -> Iterator[None]:
        """Record peak resident memory and waits for a core during the timed steps, if the kernel reports them."""
        forgotten = resident_memory.forget_peak()
        begun, waits_before = time.perf_counter(), core_waits.waited_seconds()
        yield
        waits, seconds = core_waits.waited_seconds(), time.perf_counter() - begun
        if waits_before is not None and waits is not None:
            self.readings.disturbances = tuple(core_waits.disturbances(waits - waits_before, seconds))
        if forgotten:
            self.readings.rss_peak_bytes = resident_memory.peak_bytes()

    def breakdown(
        self,
        model: nn.Module,
        step: TrainingStep,
        spec: ModelSpec,
        batches: Callable[[], Iterator[Batch]],
        held_bytes: dict[str, int],
    ) -> Breakdown:
        """Return the memory of an extra step, from its live storages."""
        self._counted = count_step(model, step, spec, batches())
        breakdown = self._counted.breakdown()
        peaks = breakdown.phase_peaks_bytes | held_bytes
        return replace(breakdown, phase_peaks_bytes={phase: peaks[phase] for phase in PHASES})

    def timeline(self, step: TrainingStep, batches: Callable[[], Iterator[Batch]]) -> Timeline:
        """Return the live bytes after each allocation and free of the step that `breakdown` counted."""
        assert self._counted is not None, "breakdown comes first"
        points = list(self._counted.live_bytes_of_step())
        start = points[0][0]
        return thinned([(event - start, live) for event, _, live in points])


@contextmanager
def _counting(
    phase: str, model: nn.Module | None = None, optimizer: torch.optim.Optimizer | None = None
) -> Iterator[Callable[[], int]]:
    """Count storages that are alive inside. Afterwards the function returns their peak in bytes."""
    ledger = StorageLedger("cpu")

    def peak() -> int:
        return max((live for _, _, live in ledger.live_bytes_of_step()), default=0)

    if model is not None:
        ledger.adopt_model(model)
    if optimizer is not None:
        ledger.adopt_optimizer(optimizer)
    ledger.begin_step()
    ledger.begin_phase(phase)
    with ledger:
        yield peak
