"""What every meter tells, whatever the device."""

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
"""(seconds since the step began, or the number of the allocation or free; live bytes after it)."""


class Readings(Struct, kw_only=True):
    """What a meter has read so far; what a device does not tell stays None."""

    loading_peak_bytes: int | None = None
    evaluation_peak_bytes: int | None = None
    active_peak_bytes: int | None = None
    requested_peak_bytes: int | None = None
    nvml_process_peak_bytes: int | None = None
    nvml_device_peak_bytes: int | None = None
    rss_peak_bytes: int | None = None
    energy_joules: float | None = None
    sm_clock_mhz: tuple[int, int] | None = None
    """Lowest and highest clock of the GPU's processors seen while steps were timed."""
    disturbances: tuple[str, ...] = ()
    """What may have slowed the timed steps, each in one line."""


class Meter(Protocol):
    """Reads one device; used in this order."""

    readings: Readings
    device_name: str | None
    """As its driver has it; None for a CPU, of which no catalogue has the rates."""

    def loading(self) -> AbstractContextManager[None]:
        """Return the context in which the model is built."""

    def held_bytes(self, model: nn.Module) -> int:
        """Return the bytes that are allocated now, while ``model`` is all there is."""

    def evaluating(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> AbstractContextManager[None]:
        """Return the context in which losses of ``model`` are worked out without training."""

    def settle(self) -> None:
        """Give back to the device what only that took which came before."""

    def mark(self) -> None:
        """Note the time on the device's own time line."""

    def laps(self) -> list[float]:
        """Return the seconds between successive marks, and forget them; the device is through with its work then."""

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
        """Return what the timed steps held, by the components of one or two more steps.

        ``batches`` returns those of one step, ``held_bytes`` is what was held before the first (`held_bytes`).
        """

    def timeline(self, step: TrainingStep, batches: Callable[[], Iterator[Batch]]) -> Timeline:
        """Return the live bytes over one more step, moment by moment."""
