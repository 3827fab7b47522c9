"""Rates measured on a device, interpolated between the measured shapes and sizes."""

from __future__ import annotations

from itertools import product as combinations
from math import prod
from typing import Any

from lorabench.estimator.closed_form.work import AttentionKernel
from lorabench.estimator.errors import UserError
from lorabench.estimator.speed.arithmetic import at, count_up_to, exp, larger, log, smaller
from lorabench.estimator.speed.calibrations import Calibration, MatmulTimes, MemoryBoundTimes
from lorabench.estimator.speed.operations import Kernel, LaunchPhase
from lorabench.estimator.speed.rates import BOUNDS, PAGING


class CalibratedRates:
    """`Rates` of a calibrated device."""

    def __init__(self, calibration: Calibration) -> None:
        """Use the measurements of ``calibration``."""
        self.calibration = calibration
        self._matmuls = {dtype: _Surface(times) for dtype, times in calibration.matmuls.items()}
        self._memory_bound = {kernel: _Curve(times) for kernel, times in calibration.memory_bound.items()}
        self._dequantisation = None if calibration.dequantisation is None else _Curve(calibration.dequantisation)
        self.asynchronous = calibration.backend == "cuda"
        host = {
            "forward": calibration.forward_seconds,
            "backward": calibration.backward_seconds,
            "optimizer": calibration.optimizer_seconds,
        }
        # If the device is the CPU, the host's seconds include the operation itself, which counts as device time.
        own = 0.0 if self.asynchronous else calibration.memory_bound["arithmetic"].seconds[0]
        self._launch_seconds = {phase: max(0.0, seconds - own) for phase, seconds in host.items()}

    def launch_seconds(self, phase: LaunchPhase) -> float:
        """Return the host's seconds to launch one operation, or one tensor's update in the optimizer's step."""
        return self._launch_seconds[phase]

    def matmul(self, m: Any, n: Any, k: Any, batch: Any, dtype: str) -> Any:
        """Return the seconds of ``batch`` matmuls (m × k) · (k × n), interpolated between the nearest measured shapes.

        Raises:
            UserError: the calibration has no matmuls in ``dtype``.
        """
        if dtype not in self._matmuls:
            raise self._not_measured(dtype)
        return batch * m * n * k / self._matmuls[dtype].rate(m, n, k)

    def attention(self, flops: Any, bytes_: Any, dtype: str, kernel: AttentionKernel, *, backward: bool) -> Any:
        """Return the seconds of attention in one kernel: the longer of its arithmetic and its memory traffic.

        ``flash_attention_2`` is assumed to be as fast as torch's own kernel.

        Raises:
            UserError: the calibration has no attention in ``dtype``.
        """
        measured = self.calibration.attention.get(dtype)
        if measured is None:
            raise self._not_measured(dtype)
        if kernel == "masked":
            rate = measured.masked_backward if backward else measured.masked_forward
        else:
            rate = measured.backward if backward else measured.forward
        return larger(flops / rate, self.memory_bound(bytes_))

    def memory_bound(self, bytes_: Any, kernel: Kernel = "arithmetic") -> Any:
        """Return the seconds of a memory-bound ``kernel`` that reads and writes ``bytes_`` in total."""
        return self._memory_bound[kernel].seconds(bytes_)

    def dequantisation(self, bytes_: Any) -> Any:
        """Return the seconds of dequantising 4-bit weights, which reads and writes ``bytes_`` in total.

        Raises:
            UserError: the calibration has no dequantisation, since bitsandbytes was not installed.
        """
        if self._dequantisation is None:
            raise UserError(
                f"the calibration of {self.calibration.device} has no 4-bit weights: "
                "install bitsandbytes and run `lorabench calibrate` again"
            )
        return self._dequantisation.seconds(bytes_)

    def paging(self, bytes_: Any) -> Any:
        """Return the seconds of moving ``bytes_`` between host and device, at a typical rate: it is not calibrated."""
        return bytes_ / PAGING[BOUNDS["typical"]]

    def _not_measured(self, dtype: str) -> UserError:
        return UserError(
            f"the calibration of {self.calibration.device} has no {dtype}: run `lorabench calibrate --dtype {dtype}`"
        )


class _Surface:
    """`MatmulTimes`, interpolated for any shape."""

    def __init__(self, times: MatmulTimes) -> None:
        self.axes = times.m, times.n, times.k
        sizes = map(prod, combinations(*self.axes))
        self.logarithms = [log(size / seconds) for size, seconds in zip(sizes, times.seconds, strict=True)]

    def rate(self, m: Any, n: Any, k: Any) -> Any:
        """Return m·n·k per second, interpolated linearly in logarithms between the eight nearest measured shapes.

        Above the grid the rate is that of the grid's edge. Below it the seconds are those of the edge, since the launch
        dominates there.
        """
        places = [_place(axis, extent) for axis, extent in zip(self.axes, (m, n, k), strict=True)]
        logarithm = 0.0
        for corner in combinations((0, 1), repeat=3):
            weight, index = 1.0, 0
            for side, (low, share), axis in zip(corner, places, self.axes, strict=True):
                weight = weight * (share if side else 1 - share)
                index = index * len(axis) + low + side
            logarithm = logarithm + weight * at(index, self.logarithms)
        edges = [larger(extent, axis[0]) / extent for extent, axis in zip((m, n, k), self.axes, strict=True)]
        return exp(logarithm) / prod(edges)


class _Curve:
    """`MemoryBoundTimes`, interpolated for any size."""

    def __init__(self, times: MemoryBoundTimes) -> None:
        self.bytes = times.bytes
        self.logarithms = [log(seconds) for seconds in times.seconds]

    def seconds(self, bytes_: Any) -> Any:
        """Return the seconds for ``bytes_``, interpolated linearly in logarithms.

        Below the smallest measured size they are constant; above the largest the rate is constant.
        """
        low, share = _place(self.bytes, larger(bytes_, self.bytes[0]))
        start, end = at(low, self.logarithms), at(low + 1, self.logarithms)
        return exp((1 - share) * start + share * end) * larger(1.0, bytes_ / self.bytes[-1])


def _place(axis: tuple[int, ...], extent: Any) -> tuple[Any, Any]:
    """Return the index of the point of ``axis`` below ``extent``, and the share of the way to the next, from 0 to 1.

    The share is that of the logarithms.
    """
    low = smaller(larger(count_up_to(extent, axis) - 1, 0), len(axis) - 2)
    start, end = log(at(low, axis)), log(at(low + 1, axis))
    return low, smaller(larger((log(extent) - start) / (end - start), 0.0), 1.0)
