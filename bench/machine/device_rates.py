"""The known speed of the device that recipes run on."""

from __future__ import annotations

from typing import NamedTuple

from lorabench.bench.records.record import DeviceFacts
from lorabench.estimator.devices.device import Device
from lorabench.estimator.errors import UserError
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.speed.calibrations import Calibration, find_calibration
from lorabench.estimator.speed.throughput import Throughput, estimate_throughput


class DeviceRates(NamedTuple):
    """A device, with its datasheet if it is in the catalogue, and its calibration if it has one."""

    device: Device
    calibration: Calibration | None

    def throughput(self, resolved: ResolvedRecipe) -> Throughput | None:
        """Return the estimated speed of the recipe; None without datasheet and calibration, or without closed form."""
        try:
            return estimate_throughput(resolved, self.device, self.calibration)
        except UserError:
            return None


def device_rates(facts: DeviceFacts) -> DeviceRates:
    """Return the known speed of the device in ``facts``.

    Raises:
        UserError: its calibration file is not a calibration.
    """
    device = facts.catalogued or Device(
        name=facts.name,
        title=facts.name,
        memory_bytes=facts.memory_bytes,
        compute_capability=facts.compute_capability,
    )
    return DeviceRates(device, find_calibration(facts.name))
