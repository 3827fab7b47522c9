"""The protocol of every meter, for any device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

from lorabench.estimator.memory.breakdown import Breakdown
from lorabench.estimator.models.spec import ModelSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lorabench.estimator.training.step import Batch, TrainingStep

Timeline = tuple[tuple[float, int], ...]
"""(seconds since the start of the step, or the number of the allocation or free; live bytes after it)."""


class Readings(Struct, kw_only=True):
    """The readings so far; None if the device does not report a value."""

    loading_peak_bytes: int | None = None
    evaluation_peak_bytes: int | None = None
    active_peak_bytes: int | None = None
    requested_peak_bytes: int | None = None
    nvml_process_peak_bytes: int | None = None
    nvml_device_peak_bytes: int | None = None
    rss_peak_bytes: int | None = None
    energy_joules: float | None = None
    sm_clock_mhz: tuple[int, int] | None = None
    """Lowest and highest SM clock during the timed steps."""
    disturbances: tuple[str, ...] = ()
    """Possible causes of slow timed steps, one line each."""


class Meter(Protocol):
    """Reads one device. The methods are called in this order."""

    readings: Readings
    device_name: str | None
    """Name from the driver; None for a CPU, whose rates are in no catalogue."""

    def loading(self) -> AbstractContextManager[None]:
        """Return the context in which the model is built."""

    def held_bytes(self, model: nn.Module) -> int:
        """Return the allocated bytes while only ``model`` is in memory."""

    def evaluating(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> AbstractContextManager[None]:
        """Return the context in which losses of ``model`` are computed without training."""

    def settle(self) -> None:
        """Free memory that only earlier stages needed."""

    def mark(self) -> None:
        """Record the time on the device's own timeline."""

    def laps(self) -> list[float]:
        """Return the seconds between successive marks, and clear them. Waits for the device."""

    def steady(self) -> AbstractContextManager[None]:
        """Return the context in which the timed steps run."""

    def breakdown(
        self,
        model: nn.Module,
        step: TrainingStep,
        spec: ModelSpec,
        batches: Callable[[], Iterator[Batch]],
        held_bytes: dict[str, int],
    ) -> Breakdown:
        """Return the peak of the timed steps, with the components of one or two extra steps.

        Args:
            batches: returns the batches of one step.
            held_bytes: bytes that were allocated before the first step (`held_bytes`), by phase.
        """

    def timeline(self, step: TrainingStep, batches: Callable[[], Iterator[Batch]]) -> Timeline:
        """Return the live bytes over an extra step, event by event."""
