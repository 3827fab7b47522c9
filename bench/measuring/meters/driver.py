"""NVML for one GPU: one function per fact.

Every fact may be missing: on older GPUs, on MIG devices, in containers, and without the library.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self, TypeVar

from msgspec import Struct

SAMPLE_SECONDS = 0.05
"""Time between two samples of the GPU."""
SLOWDOWNS = {
    0x08: "a hardware slowdown (temperature, power brake or supply)",
    0x20: "its temperature, as the driver decided",
    0x40: "its temperature, as the hardware decided",
    0x80: "an external power brake",
}
"""nvmlClocksEventReasons bits that count as disturbances. The power cap (0x04) does not: it is normal under load."""

Fact = TypeVar("Fact")


class NvmlGpu:
    """A GPU in NVML."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml = nvml
        self._handle = handle

    @classmethod
    def open(cls, uuid: str) -> Self | None:
        """Return the GPU with torch's ``uuid``; None if the driver does not know it."""
        try:
            import pynvml

            pynvml.nvmlInit()
        except (ImportError, OSError):
            return None
        except pynvml.NVMLError:
            return None
        for prefix in ("GPU-", "MIG-"):
            with suppress(pynvml.NVMLError):
                return cls(pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"{prefix}{uuid}"))
        return None

    def _ask(self, question: Callable[..., Fact], *arguments: Any) -> Fact | None:
        # A driver older than the library lacks functions; pynvml then raises an error that is not an NVMLError.
        try:
            return question(*arguments)
        except (self._nvml.NVMLError, self._nvml.NVMLLibraryMismatchError):
            return None

    def device_bytes(self) -> int | None:
        """Return the used bytes of its memory, of all processes."""
        memory = self._ask(self._nvml.nvmlDeviceGetMemoryInfo, self._handle)
        return None if memory is None else int(memory.used)

    def processes(self) -> tuple[int | None, int | None]:
        """Return the bytes of this process, CUDA context included, and the number of other processes.

        Each is None if the driver does not report it. In a container with its own process ids the driver lists this
        process under another id: if it lists a single process, that is this one.
        """
        listed = self._ask(self._nvml.nvmlDeviceGetComputeRunningProcesses, self._handle)
        if listed is None:
            return None, None
        own = [process for process in listed if process.pid == os.getpid()]
        if not own and len(listed) == 1:
            own = listed
        taken = own[0].usedGpuMemory if own else None
        return None if taken is None else int(taken), max(0, len(listed) - 1)

    def joules(self) -> float | None:
        """Return the energy used since the driver was loaded."""
        millijoules = self._ask(self._nvml.nvmlDeviceGetTotalEnergyConsumption, self._handle)
        return None if millijoules is None else millijoules / 1000

    def sm_clock_mhz(self) -> int | None:
        """Return the SM clock."""
        return self._ask(self._nvml.nvmlDeviceGetClockInfo, self._handle, self._nvml.NVML_CLOCK_SM)

    def highest_sm_clock_mhz(self) -> int | None:
        """Return the maximum SM clock."""
        return self._ask(self._nvml.nvmlDeviceGetMaxClockInfo, self._handle, self._nvml.NVML_CLOCK_SM)

    def highest_memory_clock_mhz(self) -> int | None:
        """Return the maximum memory clock."""
        return self._ask(self._nvml.nvmlDeviceGetMaxClockInfo, self._handle, self._nvml.NVML_CLOCK_MEM)

    def power_limit_watts(self) -> float | None:
        """Return the enforced power limit."""
        milliwatts = self._ask(self._nvml.nvmlDeviceGetEnforcedPowerLimit, self._handle)
        return None if milliwatts is None else milliwatts / 1000

    def slowdowns(self) -> set[str]:
        """Return the `SLOWDOWNS` that lower its clocks now."""
        # Libraries before 12.560 have only this older name; newer ones have both.
        bits = self._ask(self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons, self._handle) or 0
        return {what for bit, what in SLOWDOWNS.items() if bits & bit}


class Seen(Struct):
    """Samples of a GPU over a period."""

    process_peak_bytes: int | None = None
    device_peak_bytes: int | None = None
    sm_clock_mhz: tuple[int, int] | None = None
    """Lowest and highest clock."""
    most_others: int = 0
    slowdowns: set[str] = set()
    broke_off: str = ""
    """The error that ended the sampling early; "" if none did."""

    def look(self, gpu: NvmlGpu) -> None:
        """Add a sample of ``gpu``."""
        process_bytes, others = gpu.processes()
        self.process_peak_bytes = _larger(self.process_peak_bytes, process_bytes)
        self.device_peak_bytes = _larger(self.device_peak_bytes, gpu.device_bytes())
        clock = gpu.sm_clock_mhz()
        if clock is not None:
            low, high = self.sm_clock_mhz or (clock, clock)
            self.sm_clock_mhz = min(low, clock), max(high, clock)
        self.most_others = max(self.most_others, others or 0)
        self.slowdowns = self.slowdowns | gpu.slowdowns()

    def disturbances(self) -> list[str]:
        """Return possible causes of slow steps, one line each."""
        shared = []
        if self.most_others:
            plural = "es" if self.most_others > 1 else ""
            shared.append(f"the GPU was shared with {self.most_others} other process{plural}")
        slowed = [f"the GPU's clocks were lowered by {what}" for what in sorted(self.slowdowns)]
        unseen = [f"the GPU was not watched to the end: {self.broke_off}"] if self.broke_off else []
        return shared + slowed + unseen


class Watch:
    """A context in which a thread samples a GPU every `SAMPLE_SECONDS`."""

    def __init__(self, gpu: NvmlGpu) -> None:
        self.seen = Seen()
        self._gpu = gpu
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look_on, name="driver watch", daemon=True)

    def __enter__(self) -> Seen:
        self.seen.look(self._gpu)
        self._thread.start()
        return self.seen

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()
        self.seen.look(self._gpu)

    def _look_on(self) -> None:
        try:
            while not self._over.wait(SAMPLE_SECONDS):
                self.seen.look(self._gpu)
        except Exception as error:  # nobody would see a thread's exception, and the readings would look complete
            self.seen.broke_off = f"{type(error).__name__}: {error}"


def _larger(one: int | None, other: int | None) -> int | None:
    known = [value for value in (one, other) if value is not None]
    return max(known, default=None)
