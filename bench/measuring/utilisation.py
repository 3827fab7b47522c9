"""MFU and HFU of a step."""

from __future__ import annotations

from typing import NamedTuple

from lorabench.estimator.devices.device import known_device
from lorabench.estimator.errors import UserError
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.speed.flops import step_flops


class Utilisation(NamedTuple):
    """Shares of the peak rate; None if the device's peak or the recipe's FLOPs are unknown."""

    mfu: float | None = None
    hfu: float | None = None


def utilisation(resolved: ResolvedRecipe, device_name: str | None, step_seconds: float) -> Utilisation:
    """Return MFU and HFU of the recipe at ``step_seconds`` per step. ``device_name``: as the driver reports it.

    The peak is the catalogue's dense rate for the dtype of the recipe's matmuls. For float32 it is the float32 rate,
    since torch does not use TF32 by default.
    """
    device = None if device_name is None else known_device(device_name)
    peak = None if device is None else device.peak_flops_per_second.get(resolved.recipe.compute_dtype)
    if peak is None:
        return Utilisation()
    try:
        flops = step_flops(resolved)
    except UserError:
        return Utilisation()
    return Utilisation(flops.model / step_seconds / peak, flops.hardware / step_seconds / peak)
