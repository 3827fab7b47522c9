"""Figures from a step's time: tokens per second, MFU, energy; duration and cost of a training run."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct
from msgspec.structs import replace

from lorabench.estimator.closed_form.memory import estimate_memory
from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.devices.device import Device
from lorabench.estimator.errors import UserError
from lorabench.estimator.memory.states import states
from lorabench.estimator.optimizers.table import OPTIMIZERS
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.speed.arithmetic import larger
from lorabench.estimator.speed.calibrated_rates import CalibratedRates
from lorabench.estimator.speed.calibrations import Calibration
from lorabench.estimator.speed.flops import StepFlops, step_flops
from lorabench.estimator.speed.rates import DatasheetRates, Rates
from lorabench.estimator.speed.timing import StepTime, StepWork, size_step, step_time

Range = tuple[float, float]
"""(lowest, highest)."""

CALIBRATED_ERROR = 0.30
"""Relative error of a step's time at calibrated rates: it covers all measured runs of docs/speed.md."""
JOULES_IN_KILOWATT_HOUR = 3.6e6
LARGEST_PRICE = 10**9
"""Per hour, in any currency: a higher price is a typo."""
LEAST_POWER = 0.4
"""Fraction of a GPU's board power that training draws at least, if it mostly waits for memory or for the host. At most
it draws all of it."""


class Throughput(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How fast a recipe trains on one device: typical figures, and their ranges in the fields named ``…_range``."""

    rates: Literal["datasheet", "calibrated"]
    """Where the device's rates come from."""
    step_seconds: Annotated[float, Meta(ge=1e-12, le=1e15)]
    """Seconds of an optimizer step with all its micro-batches."""
    step_seconds_range: Range
    groups_seconds: dict[str, float]
    """Group (of `timing.GROUPS`) → seconds of a step; they add up to ``step_seconds``."""
    tokens_per_second: float
    tokens_per_second_range: Range
    flops: StepFlops
    """Floating-point operations of a step."""
    mfu: float | None = None
    """Model FLOPs utilisation: FLOPs that training needs, as a fraction of the device's dense peak in the matmuls'
    dtype. None if the peak is not known."""
    mfu_range: Range | None = None
    hfu: float | None = None
    """Hardware FLOPs utilisation: the same for the FLOPs that run."""
    watts_range: Range | None = None
    """Power of the GPU, up to its board power."""
    joules_per_token_range: Range | None = None
    training: Training | None = None
    """The training run on a number of tokens, if one was requested."""


class Training(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A training run on a number of tokens, on one device."""

    tokens: int
    seconds: float
    seconds_range: Range
    kilowatt_hours_range: Range | None = None
    """Energy of the GPU alone."""
    cost: float | None = None
    """In the currency of the price; None without one."""
    cost_range: Range | None = None


def estimate_throughput(
    resolved: ResolvedRecipe, device: Device, calibration: Calibration | None = None
) -> Throughput | None:
    """Return how fast the recipe trains on ``device``, at the rates of ``calibration`` if there is one.

    None if there are no rates: no calibration, and a device that is only a memory size.

    Raises:
        UserError: the combination has no closed form, or the calibration lacks its dtype or dequantisation.
    """
    recipe = resolved.recipe
    if not has_rates(device, calibration):
        return None
    step = size_step(resolved, backend_of(calibration))
    typical, seconds = step_times(step, device, calibration, paged_out_bytes(resolved, device))
    flops = step_flops(resolved)
    tokens = recipe.tokens * recipe.gradient_accumulation
    speed = Throughput(
        rates="datasheet" if calibration is None else "calibrated",
        step_seconds=typical.total,
        step_seconds_range=seconds,
        groups_seconds={group: second for group, second in typical.groups.items() if second},
        tokens_per_second=tokens / typical.total,
        tokens_per_second_range=(tokens / seconds[1], tokens / seconds[0]),
        flops=flops,
    )
    peak = device.peak_flops_per_second.get(recipe.compute_dtype)
    if peak is not None:
        speed = replace(
            speed,
            mfu=flops.model / typical.total / peak,
            mfu_range=(flops.model / seconds[1] / peak, flops.model / seconds[0] / peak),
            hfu=flops.hardware / typical.total / peak,
        )
    if device.tdp_watts is not None:
        watts = LEAST_POWER * device.tdp_watts, float(device.tdp_watts)
        joules = watts[0] * seconds[0] / tokens, watts[1] * seconds[1] / tokens
        speed = replace(speed, watts_range=watts, joules_per_token_range=joules)
    return speed


def likely_step_time(
    resolved: ResolvedRecipe, device: Device, calibration: Calibration | None = None
) -> StepTime | None:
    """Return the typical time of a step, as in `estimate_throughput`; None if there are no rates."""
    if not has_rates(device, calibration):
        return None
    step = size_step(resolved, backend_of(calibration))
    return step_time(step, likely_rates(device, calibration), paged_out_bytes(resolved, device))


def has_rates(device: Device, calibration: Calibration | None) -> bool:
    """Return whether there are rates for ``device``."""
    return calibration is not None or device.bandwidth_bytes_per_second is not None


def backend_of(calibration: Calibration | None) -> Backend:
    """Return the backend of the calibrated device; CUDA without a calibration."""
    return "cuda" if calibration is None else calibration.backend


def likely_rates(device: Device, calibration: Calibration | None) -> Rates:
    """Return the calibrated rates, or the typical rates of the datasheet without a calibration."""
    return DatasheetRates(device, "typical") if calibration is None else CalibratedRates(calibration)


def step_times(
    step: StepWork, device: Device, calibration: Calibration | None, paged_bytes: Any
) -> tuple[StepTime, tuple[Any, Any]]:
    """Return the typical time of ``step``, and the range of its seconds."""
    likely = step_time(step, likely_rates(device, calibration), paged_bytes)
    if calibration is not None:
        return likely, (likely.total / (1 + CALIBRATED_ERROR), likely.total * (1 + CALIBRATED_ERROR))
    least, most = (step_time(step, DatasheetRates(device, bound), paged_bytes).total for bound in ("fast", "slow"))
    return likely, (least, most)


def paged_out_bytes(resolved: ResolvedRecipe, device: Device) -> int:
    """Return the bytes of a paged optimizer's states that do not fit on ``device`` beside all other memory."""
    if not OPTIMIZERS[resolved.recipe.optim].paged:
        return 0
    taken = estimate_memory(resolved, compute_capability=device.compute_capability).device_total_bytes
    return int(without_room(states(resolved, "cuda").optimizer.paged, taken, device))


def without_room(paged_bytes: Any, taken_bytes: Any, device: Device) -> Any:
    """Return how many of ``paged_bytes`` do not fit on ``device`` beside ``taken_bytes``: numbers or arrays."""
    room = larger(0, device.usable_bytes - taken_bytes)
    return larger(0, paged_bytes - room)


def plan_training(speed: Throughput, tokens: int, price_per_hour: float | None = None) -> Throughput:
    """Return ``speed`` with the duration of a training run on ``tokens``, and its cost if a price is given.

    Raises:
        UserError: ``tokens`` is below 1, or the price is negative or above `LARGEST_PRICE`.
    """
    if tokens < 1:
        raise UserError(f"tokens {tokens}: must be 1 or more")
    if price_per_hour is not None and not 0 <= price_per_hour <= LARGEST_PRICE:
        raise UserError(f"price per hour {price_per_hour:g}: must be from 0 to {LARGEST_PRICE:,}")
    least, most = (tokens / rate for rate in reversed(speed.tokens_per_second_range))
    seconds = tokens / speed.tokens_per_second
    training = Training(tokens=tokens, seconds=seconds, seconds_range=(least, most))
    if speed.joules_per_token_range is not None:
        low, high = (tokens * joules / JOULES_IN_KILOWATT_HOUR for joules in speed.joules_per_token_range)
        training = replace(training, kilowatt_hours_range=(low, high))
    if price_per_hour is not None:
        hourly = price_per_hour / 3600
        training = replace(training, cost=seconds * hourly, cost_range=(least * hourly, most * hourly))
    return replace(speed, training=training)
