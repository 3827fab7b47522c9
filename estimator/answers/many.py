"""Memory and speed of many recipes on one device, for lists: what recipes have in common is worked out once."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import starmap
from typing import Any, NamedTuple

from lorabench.estimator.closed_form.memory import estimate_memory
from lorabench.estimator.closed_form.memory_grid import BeyondArraysError, GridPart, at_peaks_of, parts_of
from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.devices.device import Device
from lorabench.estimator.errors import UserError
from lorabench.estimator.memory.breakdown import Breakdown
from lorabench.estimator.memory.reserved import reserve_at
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.speed.calibrations import Calibration
from lorabench.estimator.speed.grid import likely_step_seconds
from lorabench.estimator.speed.throughput import likely_step_time

MANY = 100
"""From so many recipes on, arrays are faster, though numpy's import takes as long as a hundred estimates."""
SAID_EACH = 50
"""Recipes between two reports of progress, if each is estimated by itself."""


class Outline(NamedTuple):
    """Memory and speed of one recipe."""

    allocated_bytes: int
    """``peak_allocated_bytes`` of its breakdown."""
    device_total_bytes: int | None = None
    """Point estimate; None on a CPU, like the next."""
    device_total_most_bytes: int | None = None
    """Upper end of its range."""
    step_seconds: float | None = None
    """Typical seconds of a step; None if the device's rates are unknown."""


def outlines(
    recipes: Sequence[ResolvedRecipe],
    backend: Backend,
    device: Device,
    calibration: Calibration | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> list[Outline | UserError]:
    """Return memory and speed of each recipe on ``device``, or why there is no estimate.

    Memory is that of `estimate_memory`, and seconds are those of `likely_step_time`. ``on_progress`` is called with the
    number of recipes that are estimated.
    """
    if len(recipes) < MANY or importlib.util.find_spec("numpy") is None:
        found = []
        for number, resolved in enumerate(recipes):
            if number % SAID_EACH == 0:
                on_progress(number)
            found.append(_outline(resolved, backend, device, calibration))
        return found
    parts, without = parts_of(recipes, backend, device.compute_capability)
    by_place: dict[int, Outline | UserError] = {**without}
    for part in parts:
        on_progress(len(by_place))
        places = part.places.tolist()
        try:
            of_part = _outlines(part, backend, device, calibration)
        except BeyondArraysError:
            of_part = [_outline(recipes[place], backend, device, calibration) for place in places]
        except UserError as error:
            of_part = [error] * len(places)
        by_place.update(zip(places, of_part, strict=True))
    return [by_place[place] for place in range(len(recipes))]


def outline_of(memory: Breakdown, step_seconds: float | None = None) -> Outline:
    """Return the outline of a recipe with this ``memory``."""
    _, most = memory.device_total_range_bytes or (None, None)
    return Outline(memory.peak_allocated_bytes, memory.device_total_bytes, most, step_seconds)


def _outline(
    resolved: ResolvedRecipe, backend: Backend, device: Device, calibration: Calibration | None
) -> Outline | UserError:
    try:
        memory = estimate_memory(resolved, backend, device.compute_capability)
    except UserError as error:
        return error
    seconds = None
    with suppress(UserError):
        time = likely_step_time(resolved, device, calibration)
        seconds = None if time is None else float(time.total)
    return outline_of(memory, seconds)


def _outlines(
    part: GridPart, backend: Backend, device: Device, calibration: Calibration | None
) -> list[Outline | UserError]:
    capability = device.compute_capability
    at_peaks = at_peaks_of(part, backend, capability)
    seconds = None
    try:
        seconds = likely_step_seconds(part, device, calibration)
    except BeyondArraysError:
        raise
    except UserError:
        pass  # the calibration lacks what the recipes need
    count = len(part.places)
    columns: list[list[Any]] = [at_peaks.allocated.tolist(), [None] * count, [None] * count, [None] * count]
    if backend == "cuda":
        taken = reserve_at(at_peaks, compute_capability=capability)
        columns[1:3] = taken.device_total.tolist(), taken.device_total_range[1].tolist()
    if seconds is not None:
        columns[3] = seconds.tolist()
    return [*starmap(Outline, zip(*columns, strict=True))]
