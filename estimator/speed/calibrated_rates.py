"""Rates as they were measured on a device, between the shapes and sizes that were measured."""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import product as combinations
from math import log

from lorabench.estimator.errors import UserError
from lorabench.estimator.speed.calibrations import Calibration, PassTimes, ProductTimes
from lorabench.estimator.speed.operations import Kernel
from lorabench.estimator.speed.rates import BOUNDS, PAGING, HostPhase


class CalibratedRates:
    """Rates of a device that was calibrated."""

    def __init__(self, calibration: Calibration) -> None:
        """Take what was measured."""
        self.calibration = calibration
        self.asynchronous = calibration.kind == "cuda"
        host = {
            "forward": calibration.forward_seconds,
            "backward": calibration.backward_seconds,
            "optimizer": calibration.optimizer_seconds,
        }
        # A processor that is the device itself does the operation too, which is counted with the device's time.
        own = 0.0 if self.asynchronous else calibration.passes["arithmetic"].seconds[0]
        self._host_seconds = {phase: max(0.0, seconds - own) for phase, seconds in host.items()}

    def host_seconds(self, phase: HostPhase) -> float:
        """Return the seconds that the processor takes for one operation, or for one tensor of the optimizer's step."""
        return self._host_seconds[phase]

    def product(self, m: float, n: float, k: float, batch: float, dtype: str) -> float:
        """Return the seconds of ``batch`` products, each as fast as between the nearest that were measured.

        Raises:
            UserError: no products of ``dtype`` were measured.
        """
        return batch * m * n * k / _rate(self._times(dtype), m, n, k)

    def attention(self, flops: float, bytes_: float, dtype: str, *, backward: bool, masked: bool) -> float:
        """Return the seconds of attention in one kernel, or of passing over its bytes where that takes longer."""
        measured = self.calibration.attention.get(dtype)
        if measured is None:
            raise self._not_measured(dtype)
        if masked:
            rate = measured.masked_backward if backward else measured.masked_forward
        else:
            rate = measured.backward if backward else measured.forward
        return max(flops / rate, self.passing(bytes_))

    def passing(self, bytes_: float, kernel: Kernel = "arithmetic") -> float:
        """Return the seconds of a pass of ``kernel`` that reads and writes so many bytes."""
        return _seconds(self.calibration.passes[kernel], bytes_)

    def dequantisation(self, bytes_: float) -> float:
        """Return the seconds of writing out 4-bit weights.

        Raises:
            UserError: bitsandbytes was not there to be measured.
        """
        if self.calibration.dequantisation is None:
            raise UserError(
                f"the calibration of {self.calibration.device} has no 4-bit weights: "
                "install bitsandbytes and run `lorabench calibrate` again"
            )
        return _seconds(self.calibration.dequantisation, bytes_)

    def paging(self, bytes_: float) -> float:
        """Return the seconds of moving so many bytes between host and device, which is not calibrated."""
        return bytes_ / PAGING[BOUNDS["typical"]]

    def _times(self, dtype: str) -> ProductTimes:
        if dtype not in self.calibration.products:
            raise self._not_measured(dtype)
        return self.calibration.products[dtype]

    def _not_measured(self, dtype: str) -> UserError:
        return UserError(
            f"the calibration of {self.calibration.device} has no {dtype}: run `lorabench calibrate --dtype {dtype}`"
        )


def _rate(times: ProductTimes, m: float, n: float, k: float) -> float:
    """Return products of elements a second at a shape: between those measured around it, in logarithms.

    Beyond the grid the rate is that of its edge, but for a shape so small that starting takes most of the time: there
    the time is the edge's.
    """
    places = [_place(axis, extent) for axis, extent in ((times.m, m), (times.n, n), (times.k, k))]
    logarithm = 0.0
    for corner in combinations((0, 1), repeat=3):
        weight, index, size = 1.0, 0, 1
        for side, (low, share), axis in zip(corner, places, (times.m, times.n, times.k), strict=True):
            weight *= share if side else 1 - share
            index = index * len(axis) + low + side
            size *= axis[low + side]
        if weight:
            logarithm += weight * log(size / times.seconds[index])
    rate = math.exp(logarithm)
    edge = math.prod(max(extent, axis[0]) / extent for extent, axis in ((m, times.m), (n, times.n), (k, times.k)))
    return rate / edge


def _place(axis: tuple[int, ...], extent: float) -> tuple[int, float]:
    """Return between which point and the next ``extent`` lies, and how far, from 0 to 1, in logarithms."""
    low = min(max(bisect_right(axis, extent) - 1, 0), len(axis) - 2)
    share = (log(extent) - log(axis[low])) / (log(axis[low + 1]) - log(axis[low]))
    return low, min(max(share, 0.0), 1.0)


def _seconds(times: PassTimes, bytes_: float) -> float:
    """Return seconds between those measured, in logarithms; beyond the largest at its rate."""
    if bytes_ <= times.bytes[0]:
        return times.seconds[0]
    if bytes_ >= times.bytes[-1]:
        return times.seconds[-1] * bytes_ / times.bytes[-1]
    low, share = _place(times.bytes, bytes_)
    return math.exp((1 - share) * log(times.seconds[low]) + share * log(times.seconds[low + 1]))
