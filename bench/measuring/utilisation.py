"""What share of a device's peak rate a step's arithmetic makes up."""

from __future__ import annotations

from typing import NamedTuple

from lorabench.estimator.devices.device import known_device
from lorabench.estimator.errors import UserError
from lorabench.estimator.models.spec import ModelSpec
from lorabench.estimator.recipes.recipe import Recipe
from lorabench.estimator.speed.flops import step_flops


class Utilisation(NamedTuple):
    """Shares of the peak rate; None where the device's peak or the recipe's arithmetic is not known."""

    mfu: float | None = None
    hfu: float | None = None


def utilisation(spec: ModelSpec, recipe: Recipe, device_name: str | None, step_seconds: float) -> Utilisation:
    """Return what ``recipe``, at ``step_seconds`` a step, makes of the device, named as its driver does.

    The peak is the catalogue's dense rate for the dtype in which the recipe's matrix products run. Float32 products are
    held against the float32 rate, since torch leaves TF32 off unless told otherwise.
    """
    device = None if device_name is None else known_device(device_name)
    peak = None if device is None else device.peak_flops_per_second.get(recipe.compute_dtype)
    if peak is None:
        return Utilisation()
    try:
        flops = step_flops(spec, recipe)
    except UserError:
        return Utilisation()
    return Utilisation(flops.model / step_seconds / peak, flops.hardware / step_seconds / peak)
