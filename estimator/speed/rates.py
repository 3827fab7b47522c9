"""The rates of a device, from its datasheet within documented bounds.

Seconds of an operation are those on the device. `launch_seconds`, the host's time to launch it, is separate: on a GPU
the host launches operations while the device runs earlier ones.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol

from lorabench.estimator.closed_form.work import AttentionKernel
from lorabench.estimator.devices.device import Device
from lorabench.estimator.dtypes import ITEMSIZE
from lorabench.estimator.quantities import MIB
from lorabench.estimator.speed.arithmetic import ceil, floor, larger, smaller
from lorabench.estimator.speed.operations import Kernel, LaunchPhase

Bound = Literal["slow", "typical", "fast"]
TILE = 128
"""Rows and columns of the result that one multiprocessor computes at a time, in kernels for large matmuls (cuBLAS and
CUTLASS have 128 × 128 and 256 × 128)."""
LEAST_DEPTH = 512
"""A matmul with fewer tiles than multiprocessors is split along k (split-K), into pieces no shorter than this."""


class Rates(Protocol):
    """Seconds of a step's operations. Extents, bytes and seconds are numbers, or arrays for a grid of recipes."""

    @property
    def asynchronous(self) -> bool:
        """Whether the host launches operations ahead of the device, as it does for a GPU."""

    def launch_seconds(self, phase: LaunchPhase) -> float:
        """Return the host's seconds to launch one operation, or one tensor's update in the optimizer's step.

        They include the Python code of PyTorch, transformers and peft. They exclude the operation itself, which runs on
        the host if the device is a CPU.
        """

    def matmul(self, m: Any, n: Any, k: Any, batch: Any, dtype: str) -> Any:
        """Return the seconds of ``batch`` matmuls (m × k) · (k × n)."""

    def attention(self, flops: Any, bytes_: Any, dtype: str, kernel: AttentionKernel, *, backward: bool) -> Any:
        """Return the seconds of attention in one kernel that runs ``flops`` and reads and writes ``bytes_``."""

    def memory_bound(self, bytes_: Any, kernel: Kernel = "arithmetic") -> Any:
        """Return the seconds of a memory-bound ``kernel`` that reads and writes ``bytes_`` in total."""

    def dequantisation(self, bytes_: Any) -> Any:
        """Return the seconds of dequantising 4-bit weights, which reads and writes ``bytes_`` in total."""

    def paging(self, bytes_: Any) -> Any:
        """Return the seconds of moving ``bytes_`` of unified memory between host and device."""


class Fractions(NamedTuple):
    """The fraction of a datasheet's figures that software achieves, and other bounds."""

    matmul: float
    """Of the peak rate, by large matmuls that fill the device."""
    attention: float
    """Of the peak rate, by the kernel that torch selects for attention without a mask, in forward."""
    attention_backward: float
    flash_attention_2: float
    """Of the peak rate, by FlashAttention-2, in forward."""
    flash_attention_2_backward: float
    masked_attention: float
    """Of the peak rate, by attention with a mask, in forward and backward."""
    bandwidth: float
    """Of memory bandwidth, by elementwise operations."""
    cache: float
    """Of memory bandwidth, by reads and writes in the cache: more than 1."""
    dequantisation: float
    """Of memory bandwidth, by bitsandbytes' dequantisation."""
    unknown_cache_bytes: int
    """Cache size to assume for a GPU whose cache is not known."""
    emulated_bfloat16: float
    """Of the float32 rate, by bfloat16 matmuls on a GPU without bfloat16 units: they are converted to float32."""
    paging: float
    """Bytes per second of unified memory between host and device: a fraction of PCIe 3 to 5."""
    launch_seconds: float
    kernel_seconds: float
    """Seconds of the shortest kernel, until the next one runs."""


# docs/speed.md has the sources. None of these numbers was fitted to the runs that docs/speed.md compares them with.
MATMUL_FRACTIONS: dict[str, tuple[float, float, float]] = {
    "8.0": (0.70, 0.84, 0.87),
    "9.0": (0.68, 0.82, 0.84),
    "gfx90a": (0.64, 0.77, 0.77),
    "gfx942": (0.48, 0.57, 0.60),
}
"""Compute capability or AMD's target → lowest, typical and highest fraction of the peak. Typical is the mean of the
fractions measured with the best shapes, highest their maximum; lowest is a sixth below typical."""
UNMEASURED_MATMUL_FRACTIONS = (0.50, 0.70, 0.95)
ATTENTION_FRACTIONS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "8.0": ((0.45, 0.58, 0.68), (0.35, 0.48, 0.60)),
    "9.0": ((0.25, 0.60, 0.69), (0.20, 0.52, 0.60)),
    "10.0": ((0.14, 0.50, 0.80), (0.11, 0.42, 0.70)),
}
"""The same for attention in the kernel that torch selects, in forward and in backward."""
FLASH_ATTENTION_2_FRACTIONS = {
    "9.0": ((0.25, 0.30, 0.40), (0.20, 0.26, 0.34)),
    "10.0": ((0.14, 0.16, 0.17), (0.11, 0.13, 0.15)),
}
"""The same for FlashAttention-2, on GPUs for which torch selects another kernel."""
UNMEASURED_ATTENTION_FRACTIONS = ((0.30, 0.50, 0.80), (0.25, 0.42, 0.70))
PAGING = (5e9, 12e9, 50e9)
BOUNDS: dict[Bound, int] = {"slow": 0, "typical": 1, "fast": 2}


def datasheet_fractions(device: Device, bound: Bound) -> Fractions:
    """Return the fractions that software achieves on ``device`` at ``bound``."""
    index = BOUNDS[bound]
    compute_capability = device.compute_capability or ""
    attention = ATTENTION_FRACTIONS.get(compute_capability, UNMEASURED_ATTENTION_FRACTIONS)
    flash = FLASH_ATTENTION_2_FRACTIONS.get(compute_capability, attention)
    return Fractions(
        matmul=MATMUL_FRACTIONS.get(compute_capability, UNMEASURED_MATMUL_FRACTIONS)[index],
        attention=attention[0][index],
        attention_backward=attention[1][index],
        flash_attention_2=flash[0][index],
        flash_attention_2_backward=flash[1][index],
        masked_attention=(0.15, 0.30, 0.60)[index],
        bandwidth=(0.65, 0.82, 0.92)[index],
        cache=(2.0, 3.0, 5.0)[index],
        dequantisation=(0.30, 0.60, 0.92)[index],
        unknown_cache_bytes=(0, 0, 128 * MIB)[index],
        emulated_bfloat16=(0.4, 0.5, 1.0)[index],
        paging=PAGING[index],
        launch_seconds=(15e-6, 8e-6, 4e-6)[index],
        kernel_seconds=(4e-6, 2.5e-6, 1.5e-6)[index],
    )


class DatasheetRates:
    """`Rates` of a GPU from its datasheet, at one bound."""

    asynchronous = True

    def __init__(self, device: Device, bound: Bound) -> None:
        """Use the datasheet of ``device``, which must have a bandwidth and a number of multiprocessors."""
        assert device.bandwidth_bytes_per_second is not None
        assert device.multiprocessors is not None
        self.peaks = device.peak_flops_per_second
        self.multiprocessors = device.multiprocessors
        self.fractions = datasheet_fractions(device, bound)
        unknown = self.fractions.unknown_cache_bytes
        self.cache_bytes = unknown if device.cache_bytes is None else device.cache_bytes
        self.bandwidth = device.bandwidth_bytes_per_second * self.fractions.bandwidth

    def launch_seconds(self, phase: LaunchPhase) -> float:
        """Return the host's seconds to launch one operation."""
        return self.fractions.launch_seconds

    def matmul(self, m: Any, n: Any, k: Any, batch: Any, dtype: str) -> Any:
        """Return the seconds of ``batch`` matmuls (m × k) · (k × n).

        They are the longest of the arithmetic, the memory traffic, and the shortest kernel.
        """
        rate = self.peak(dtype) * self.fractions.matmul * self._tile_efficiency(m, n, k, batch)
        bytes_ = batch * (m * k + k * n + m * n) * ITEMSIZE[dtype]
        roofline = larger(batch * 2 * m * n * k / rate, bytes_ / self.bandwidth)
        return larger(roofline, self.fractions.kernel_seconds)

    def attention(self, flops: Any, bytes_: Any, dtype: str, kernel: AttentionKernel, *, backward: bool) -> Any:
        """Return the seconds of attention: the longest of arithmetic, memory traffic, and the shortest kernel."""
        fractions = self.fractions
        forward, in_backward = {
            "sdpa": (fractions.attention, fractions.attention_backward),
            "flash_attention_2": (fractions.flash_attention_2, fractions.flash_attention_2_backward),
            "masked": (fractions.masked_attention, fractions.masked_attention),
        }[kernel]
        share = in_backward if backward else forward
        roofline = larger(flops / (self.peak(dtype) * share), bytes_ / self.bandwidth)
        return larger(roofline, fractions.kernel_seconds)

    def memory_bound(self, bytes_: Any, kernel: Kernel = "arithmetic") -> Any:
        """Return the seconds of a kernel that reads and writes ``bytes_`` in total.

        A part of them stays in the cache: inputs that the previous operation left there, and results that the next one
        overwrites before they are written back. The larger ``bytes_``, the more of that part is displaced.
        """
        cached = smaller(bytes_, larger(0.0, self.cache_bytes - bytes_))
        from_cache = cached * self.fractions.bandwidth / (self.bandwidth * self.fractions.cache)
        return larger((bytes_ - cached) / self.bandwidth + from_cache, self.fractions.kernel_seconds)

    def dequantisation(self, bytes_: Any) -> Any:
        """Return the seconds of dequantising 4-bit weights, which reads and writes ``bytes_`` in total."""
        fractions = self.fractions
        seconds = bytes_ * fractions.bandwidth / (self.bandwidth * fractions.dequantisation)
        return larger(seconds, fractions.kernel_seconds)

    def paging(self, bytes_: Any) -> Any:
        """Return the seconds of moving ``bytes_`` between host and device."""
        return bytes_ / self.fractions.paging

    def peak(self, dtype: str) -> float:
        """Return the peak floating-point operations per second of dense matmuls in ``dtype``."""
        return self.peaks.get(dtype) or self.fractions.emulated_bfloat16 * self.peaks["float32"]

    def _tile_efficiency(self, m: Any, n: Any, k: Any, batch: Any) -> Any:
        """Return the share of the multiprocessors' time that computes elements of the result.

        Tiles run in waves, and the last wave may leave multiprocessors idle (wave quantisation). A tile beyond the edge
        of the result is computed in full (tile quantisation).
        """
        high, wide = ceil(m / TILE), ceil(n / TILE)
        tiles = batch * high * wide
        tiles = tiles * larger(1, smaller(floor(k / LEAST_DEPTH), floor(self.multiprocessors / tiles)))
        waves = ceil(tiles / self.multiprocessors)
        wanted = (m / (TILE * high)) * (n / (TILE * wide))
        return wanted * tiles / (waves * self.multiprocessors)
