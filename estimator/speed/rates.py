"""How fast a device works: from its datasheet, within documented bounds, or as calibrated on it.

Times are those that a device takes for an operation once it has it. `launch_seconds`, what the processor takes to send
one off, is apart: on a GPU it passes while the device works on earlier ones.
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
"""Rows and columns of the result that one multiprocessor works out at a time, in the kernels that are used for large
products (cuBLAS and CUTLASS have 128 × 128 and 256 × 128)."""
LEAST_DEPTH = 512
"""A product with fewer tiles than multiprocessors is split along k, into pieces no shorter than this."""


class Rates(Protocol):
    """Seconds for operations of a step: extents and bytes are numbers, or arrays of them, and so are the seconds."""

    @property
    def asynchronous(self) -> bool:
        """Whether the processor runs ahead of the device, as it does of a GPU."""

    def launch_seconds(self, phase: LaunchPhase) -> float:
        """Return the seconds that the processor takes for one operation, or for one tensor of the optimizer's step.

        With what PyTorch, transformers and peft do around it; without what a device that is the processor does.
        """

    def matmul(self, m: Any, n: Any, k: Any, batch: Any, dtype: str) -> Any:
        """Return the seconds of ``batch`` products of (m × k) and (k × n) matrices."""

    def attention(self, flops: Any, bytes_: Any, dtype: str, kernel: AttentionKernel, *, backward: bool) -> Any:
        """Return the seconds of attention in one kernel."""

    def memory_bound(self, bytes_: Any, kernel: Kernel = "arithmetic") -> Any:
        """Return the seconds of a pass of ``kernel`` that reads and writes so many bytes, together."""

    def dequantisation(self, bytes_: Any) -> Any:
        """Return the seconds of writing out 4-bit weights, reading and writing so many bytes."""

    def paging(self, bytes_: Any) -> Any:
        """Return the seconds of moving so many bytes of unified memory between host and device."""


class Fractions(NamedTuple):
    """Which part of a datasheet's figures software gets to use."""

    matmul: float
    """Of the peak rate, by large matrix products that fill the device."""
    attention: float
    """Of the peak rate, by the kernel that torch takes for attention without a mask, forward."""
    attention_backward: float
    flash_attention_2: float
    """Of the peak rate, by FlashAttention-2, forward."""
    flash_attention_2_backward: float
    masked_attention: float
    """Of the peak rate, by attention that is given a mask, either way."""
    bandwidth: float
    """Of memory bandwidth, by elementwise operations."""
    cache: float
    """Of memory bandwidth, from the cache: more than 1."""
    dequantisation: float
    """Of memory bandwidth, by bitsandbytes' kernels."""
    unknown_cache_bytes: int
    """Of a GPU whose cache is not known."""
    emulated_bfloat16: float
    """Of the float32 rate, by bfloat16 products on a GPU without units for them: they are widened first."""
    paging: float
    """Bytes a second of unified memory that moves between host and device: a part of what PCIe 3 to 5 takes."""
    launch_seconds: float
    kernel_seconds: float
    """That the shortest kernel takes, until the next one runs."""


# Where these come from is in docs/speed.md. None of them was fitted to the runs that they are held against there.
MATMUL_FRACTIONS: dict[str, tuple[float, float, float]] = {
    "8.0": (0.70, 0.84, 0.87),
    "9.0": (0.68, 0.82, 0.84),
    "gfx90a": (0.64, 0.77, 0.77),
    "gfx942": (0.48, 0.57, 0.60),
}
"""Compute capability or AMD's target → least, usual and most fraction of the peak. Of what was measured with the best
shapes, the mean is usual and the highest most; a sixth less than usual is least."""
UNMEASURED_MATMUL_FRACTIONS = (0.50, 0.70, 0.95)
ATTENTION_FRACTIONS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "8.0": ((0.45, 0.58, 0.68), (0.35, 0.48, 0.60)),
    "9.0": ((0.25, 0.60, 0.69), (0.20, 0.52, 0.60)),
    "10.0": ((0.14, 0.50, 0.80), (0.11, 0.42, 0.70)),
}
"""The same for attention, forward and backward, by the kernel that torch takes."""
FLASH_ATTENTION_2_FRACTIONS = {
    "9.0": ((0.25, 0.30, 0.40), (0.20, 0.26, 0.34)),
    "10.0": ((0.14, 0.16, 0.17), (0.11, 0.13, 0.15)),
}
"""The same by FlashAttention-2, on architectures for which torch prefers another."""
UNMEASURED_ATTENTION_FRACTIONS = ((0.30, 0.50, 0.80), (0.25, 0.42, 0.70))
PAGING = (5e9, 12e9, 50e9)
BOUNDS: dict[Bound, int] = {"slow": 0, "typical": 1, "fast": 2}


def datasheet_fractions(device: Device, bound: Bound) -> Fractions:
    """Return what software gets of ``device``, at least, usually or at most."""
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
    """Rates of a GPU of which only the datasheet is known, at one end of what is likely or in the middle."""

    asynchronous = True

    def __init__(self, device: Device, bound: Bound) -> None:
        """Take the peaks of ``device``, which must have them."""
        assert device.bandwidth_bytes_per_second is not None
        assert device.multiprocessors is not None
        self.peaks = device.peak_flops_per_second
        self.multiprocessors = device.multiprocessors
        self.fractions = datasheet_fractions(device, bound)
        unknown = self.fractions.unknown_cache_bytes
        self.cache_bytes = unknown if device.cache_bytes is None else device.cache_bytes
        self.bandwidth = device.bandwidth_bytes_per_second * self.fractions.bandwidth

    def launch_seconds(self, phase: LaunchPhase) -> float:
        """Return the seconds that the processor takes for one operation."""
        return self.fractions.launch_seconds

    def matmul(self, m: Any, n: Any, k: Any, batch: Any, dtype: str) -> Any:
        """Return the seconds of ``batch`` products of (m × k) and (k × n) matrices: a roofline of three."""
        rate = self.peak(dtype) * self.fractions.matmul * self._tile_efficiency(m, n, k, batch)
        bytes_ = batch * (m * k + k * n + m * n) * ITEMSIZE[dtype]
        roofline = larger(batch * 2 * m * n * k / rate, bytes_ / self.bandwidth)
        return larger(roofline, self.fractions.kernel_seconds)

    def attention(self, flops: Any, bytes_: Any, dtype: str, kernel: AttentionKernel, *, backward: bool) -> Any:
        """Return the seconds of attention in one kernel."""
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
        """Return the seconds of reading and writing so many bytes.

        What the operation before left in the cache is read from there, and what is written there is overwritten
        before it is written back, unless these bytes themselves displace it.
        """
        cached = smaller(bytes_, larger(0.0, self.cache_bytes - bytes_))
        from_cache = cached * self.fractions.bandwidth / (self.bandwidth * self.fractions.cache)
        return larger((bytes_ - cached) / self.bandwidth + from_cache, self.fractions.kernel_seconds)

    def dequantisation(self, bytes_: Any) -> Any:
        """Return the seconds of writing out 4-bit weights."""
        fractions = self.fractions
        seconds = bytes_ * fractions.bandwidth / (self.bandwidth * fractions.dequantisation)
        return larger(seconds, fractions.kernel_seconds)

    def paging(self, bytes_: Any) -> Any:
        """Return the seconds of moving so many bytes between host and device."""
        return bytes_ / self.fractions.paging

    def peak(self, dtype: str) -> float:
        """Return the floating-point operations a second of dense products in ``dtype``."""
        return self.peaks.get(dtype) or self.fractions.emulated_bfloat16 * self.peaks["float32"]

    def _tile_efficiency(self, m: Any, n: Any, k: Any, batch: Any) -> Any:
        """Return which part of the multiprocessors' time goes into elements of the result that are wanted.

        Tiles are dealt out in waves, the last of which may leave multiprocessors idle; and a tile that reaches over
        the edge is worked out in full.
        """
        high, wide = ceil(m / TILE), ceil(n / TILE)
        tiles = batch * high * wide
        tiles = tiles * larger(1, smaller(floor(k / LEAST_DEPTH), floor(self.multiprocessors / tiles)))
        waves = ceil(tiles / self.multiprocessors)
        wanted = (m / (TILE * high)) * (n / (TILE * wide))
        return wanted * tiles / (waves * self.multiprocessors)
