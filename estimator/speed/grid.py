"""Throughput for arrays of batch sizes, lengths and ranks: `estimate_throughput` in numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from lorabench.estimator.closed_form.memory_grid import GridPart, grid_parts, peaks_of
from lorabench.estimator.devices.device import Device
from lorabench.estimator.memory.reserved import device_total
from lorabench.estimator.memory.states import states
from lorabench.estimator.optimizers.table import OPTIMIZERS
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.speed.calibrations import Calibration
from lorabench.estimator.speed.extents import fill
from lorabench.estimator.speed.operations import micro_batch_operations
from lorabench.estimator.speed.optimizer_steps import optimizer_step
from lorabench.estimator.speed.throughput import backend_of, has_rates, likely_rates, step_times, without_room
from lorabench.estimator.speed.timing import StepWork, step_time

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray


class ThroughputGrid(NamedTuple):
    """How fast each recipe of a grid trains: arrays of the grid's shape. A range is (lowest, highest)."""

    step_seconds: NDArray[np.float64]
    step_seconds_range: tuple[NDArray[np.float64], NDArray[np.float64]]
    tokens_per_second: NDArray[np.float64]
    tokens_per_second_range: tuple[NDArray[np.float64], NDArray[np.float64]]


def estimate_throughput_grid(
    resolved: ResolvedRecipe,
    device: Device,
    batch_sizes: ArrayLike,
    seq_lens: ArrayLike,
    ranks: ArrayLike | None = None,
    calibration: Calibration | None = None,
) -> ThroughputGrid | None:
    """Return the throughput of the recipe with each batch size, length and rank instead of its own.

    The arrays are as in `estimate_memory_grid`. Each element equals that of `estimate_throughput`, except for rounding
    in the interpolation between calibrated points. None if no rates are known for the device.

    Raises:
        UserError: as in `estimate_throughput` and `estimate_memory_grid` (8 PiB: only with a paged optimizer).
    """
    import numpy as np

    shape, parts = grid_parts(resolved, batch_sizes, seq_lens, ranks)
    if not has_rates(device, calibration):
        return None
    likely, least, most, tokens = np.empty((4, *shape))
    for part in parts:
        step, paged_bytes = _step(part, device, calibration)
        time, (low, high) = step_times(step, device, calibration, paged_bytes)
        likely.flat[part.places], least.flat[part.places], most.flat[part.places] = time.total, low, high
        tokens.flat[part.places] = part.batch_sizes * part.seq_lens * resolved.recipe.gradient_accumulation
    return ThroughputGrid(likely, (least, most), tokens / likely, (tokens / most, tokens / least))


def likely_step_seconds(
    part: GridPart, device: Device, calibration: Calibration | None = None
) -> NDArray[np.float64] | None:
    """Return the typical seconds of a step of each recipe of ``part``, as `likely_step_time`; None if it is None.

    Raises:
        UserError: as in `estimate_throughput_grid`.
    """
    import numpy as np

    if not has_rates(device, calibration):
        return None
    step, paged_bytes = _step(part, device, calibration)
    seconds = step_time(step, likely_rates(device, calibration), paged_bytes).total
    return np.broadcast_to(seconds, part.places.shape)


def _step(part: GridPart, device: Device, calibration: Calibration | None) -> tuple[StepWork, NDArray[np.int64] | int]:
    """Return the step of the recipes of ``part``, and the bytes of optimizer states for which there is no room."""
    import numpy as np

    backend = backend_of(calibration)
    ranks, which = np.unique(part.ranks, return_inverse=True)
    ranked = [part.example.with_rank(int(rank) or None) for rank in ranks]
    optimizers = [optimizer_step(resolved) for resolved in ranked]
    step = StepWork(
        micro_batch_operations(part.example, backend),
        fill(part.example, part.batch_sizes, part.seq_lens, part.ranks),
        optimizers[0]._replace(bytes=np.array([one.bytes for one in optimizers])[which]),
        part.example.recipe.gradient_accumulation,
        backend,
    )
    if not OPTIMIZERS[part.example.recipe.optim].paged:
        return step, 0
    paged_bytes = np.array([states(resolved, "cuda").optimizer.paged for resolved in ranked])[which]
    taken = device_total(peaks_of(part, "cuda", device.compute_capability), device.compute_capability)
    return step, without_room(paged_bytes, taken, device)
