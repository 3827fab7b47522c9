"""Tokens per second on a page: the estimator's arithmetic, recorded for any sizes and any GPU (`expressions`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lorabench.estimator.devices.device import Device
from lorabench.estimator.dtypes import ITEMSIZE
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.speed.extents import fill
from lorabench.estimator.speed.operations import micro_batch_operations
from lorabench.estimator.speed.optimizer_steps import optimizer_step
from lorabench.estimator.speed.rates import Bound, DatasheetRates, Fractions
from lorabench.estimator.speed.timing import StepWork, step_time
from lorabench.reports.expressions import Program
from lorabench.reports.expressions import Step as ProgramStep

BOUNDS: dict[str, Bound] = {"least": "slow", "likely": "typical", "most": "fast"}
"""Name of a speed on the page → bound of the rates behind it."""
OPTIMIZER_BYTES = "optimizer_bytes"


class SpeedProgram:
    """The speeds of one model's recipes. Its variables are batch size, length, rank, `optimizer_bytes` and `rates`."""

    def __init__(self) -> None:
        self._program = Program()
        self._rates = _UnknownRates(self._program.variable)
        self._answers: list[int] = []

    def record(self, resolved: ResolvedRecipe) -> int:
        """Return the step with the tokens per second of all recipes that run the same operations as this one."""
        sizes: list[Any] = [*map(self._program.variable, ("batch_size", "seq_len", "rank"))]
        passed: Any = self._program.variable(OPTIMIZER_BYTES)
        step = StepWork(
            micro_batch_operations(resolved),
            fill(resolved, *sizes),
            optimizer_step(resolved)._replace(bytes=passed),
            resolved.recipe.gradient_accumulation,
            "cuda",
        )
        tokens = sizes[0] * sizes[1] * resolved.recipe.gradient_accumulation
        self._answers.append(self._program.place_of(tokens / step_time(step, self._rates).total))
        return self._answers[-1]

    @property
    def steps(self) -> list[ProgramStep | None]:
        """The steps that compute all recorded speeds."""
        return self._program.steps(self._answers)


def optimizer_bytes(resolved: ResolvedRecipe) -> float:
    """Return the bytes that the optimizer step reads and writes."""
    return float(optimizer_step(resolved).bytes)


def rates(device: Device) -> dict[str, dict[str, float]] | None:
    """Return ``least``, ``likely``, ``most`` → the rates of ``device`` by variable; None if unknown."""
    if device.bandwidth_bytes_per_second is None:
        return None
    return {name: _known(DatasheetRates(device, bound)) for name, bound in BOUNDS.items()}


class _UnknownRates(DatasheetRates):
    """Rates of a GPU that is chosen later, on the page."""

    def __init__(self, number: Callable[[str], Any]) -> None:
        self.peaks = {dtype: number(dtype) for dtype in ITEMSIZE}
        self.fractions = Fractions(*map(number, Fractions._fields))
        self.multiprocessors = number("multiprocessors")
        self.cache_bytes = number("cache_bytes")
        self.bandwidth = number("bandwidth_bytes_per_second")


def _known(rates: DatasheetRates) -> dict[str, float]:
    return {
        **{dtype: rates.peak(dtype) for dtype in ITEMSIZE},
        **rates.fractions._asdict(),
        "multiprocessors": rates.multiprocessors,
        "cache_bytes": rates.cache_bytes,
        "bandwidth_bytes_per_second": rates.bandwidth,
    }
