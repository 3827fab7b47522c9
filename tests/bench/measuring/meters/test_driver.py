"""What the driver says, as recorded on GPUs and in containers, and what is made of it."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace
from typing import Any

import pytest

from lorabench.bench.measuring.meters.driver import SAMPLE_SECONDS, NvmlGpu, Seen, Watch

GIB = 2**30


class RecordedError(Exception):
    """As NVML raises where a GPU or a container does not tell."""


class OldDriverError(Exception):
    """As pynvml raises where the driver is older than the library: no NVMLError."""


class Recorded:
    """A management library that says what it is told to; what is None raises."""

    NVMLError = RecordedError
    NVMLLibraryMismatchError = OldDriverError
    NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2

    def __init__(self, **facts: Any) -> None:
        self.facts: dict[str, Any] = {
            "used": 5 * GIB,
            "processes": [(os.getpid(), 4 * GIB)],
            "millijoules": 1_500_000,
            "clock": 1755,
            "reasons": 0,
            "milliwatts": 700_000,
            **facts,
        }

    def _say(self, fact: str) -> Any:
        if self.facts[fact] is None:
            raise self.NVMLError("Not Supported")
        if isinstance(self.facts[fact], Exception):
            raise self.facts[fact]
        return self.facts[fact]

    def nvmlDeviceGetMemoryInfo(self, handle: object) -> Any:  # noqa: N802
        return SimpleNamespace(used=self._say("used"))

    def nvmlDeviceGetComputeRunningProcesses(self, handle: object) -> Any:  # noqa: N802
        return [SimpleNamespace(pid=pid, usedGpuMemory=taken) for pid, taken in self._say("processes")]

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: object) -> Any:  # noqa: N802
        return self._say("millijoules")

    def nvmlDeviceGetClockInfo(self, handle: object, kind: int) -> Any:  # noqa: N802
        assert kind == self.NVML_CLOCK_SM
        return self._say("clock")

    def nvmlDeviceGetMaxClockInfo(self, handle: object, kind: int) -> Any:  # noqa: N802
        return {self.NVML_CLOCK_SM: 1980, self.NVML_CLOCK_MEM: 2619}[kind]

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: object) -> Any:  # noqa: N802
        return self._say("milliwatts")

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: object) -> Any:  # noqa: N802
        return self._say("reasons")


def gpu(**facts: Any) -> NvmlGpu:
    return NvmlGpu(Recorded(**facts), object())


def test_facts_come_in_their_units() -> None:
    told = gpu()
    assert (told.device_bytes(), told.processes()) == (5 * GIB, (4 * GIB, 0))
    assert (told.joules(), told.power_limit_watts()) == (1500.0, 700.0)
    assert (told.sm_clock_mhz(), told.highest_sm_clock_mhz(), told.highest_memory_clock_mhz()) == (1755, 1980, 2619)


def test_what_the_driver_does_not_tell_is_unknown() -> None:
    told = gpu(used=None, processes=None, millijoules=None, clock=None, reasons=None, milliwatts=None)
    assert (told.device_bytes(), told.processes(), told.joules()) == (None, (None, None), None)
    assert (told.sm_clock_mhz(), told.power_limit_watts(), told.slowdowns()) == (None, None, set())
    seen = Seen()
    seen.look(told)
    assert seen == Seen()


@pytest.mark.parametrize(
    ("processes", "own_bytes", "others"),
    [
        ([(os.getpid(), 3), (os.getpid() + 1, 9)], 3, 1),
        ([(os.getpid() + 1, 9)], 9, 0),  # a container's ids are not the driver's
        ([(os.getpid() + 1, 9), (os.getpid() + 2, 8)], None, 1),
        ([], None, 0),
        ([(os.getpid(), None)], None, 0),  # under WDDM, and in some containers
    ],
)
def test_other_processes_are_told_from_this_one(
    processes: list[tuple[int, int | None]], own_bytes: int | None, others: int
) -> None:
    told = gpu(processes=processes)
    assert told.processes() == (own_bytes, others)


def test_a_hot_gpu_is_a_disturbance_and_one_at_its_power_limit_is_not() -> None:
    assert gpu(reasons=0x04).slowdowns() == gpu(reasons=0x01 | 0x100).slowdowns() == set()
    seen = Seen()
    seen.look(gpu(reasons=0x20 | 0x04, processes=[(os.getpid(), 1), (os.getpid() + 1, 1), (os.getpid() + 2, 1)]))
    assert seen.disturbances() == [
        "the GPU was shared with 2 other processes",
        "the GPU's clocks were lowered by its temperature, as the driver decided",
    ]


def test_a_watch_keeps_the_extremes_of_what_it_sees_meanwhile() -> None:
    library = Recorded()
    with Watch(NvmlGpu(library, object())) as seen:
        library.facts |= {"used": 9 * GIB, "clock": 1200}
        until = time.monotonic() + 100 * SAMPLE_SECONDS
        while seen.device_peak_bytes != 9 * GIB and time.monotonic() < until:
            time.sleep(SAMPLE_SECONDS / 5)
        library.facts |= {"used": 2 * GIB, "clock": 1500}
    assert seen.device_peak_bytes == 9 * GIB
    assert seen.sm_clock_mhz == (1200, 1755)
    assert seen.disturbances() == []


def test_a_driver_older_than_the_library_tells_no_processes() -> None:
    assert gpu(processes=OldDriverError("Unversioned function called")).processes() == (None, None)


def test_a_watch_that_breaks_off_says_so() -> None:
    library = Recorded()
    with Watch(NvmlGpu(library, object())) as seen:
        library.facts["clock"] = ValueError("gibberish")
        until = time.monotonic() + 100 * SAMPLE_SECONDS
        while not seen.broke_off and time.monotonic() < until:
            time.sleep(SAMPLE_SECONDS / 5)
        library.facts["clock"] = 1500
    assert seen.disturbances() == ["the GPU was not watched to the end: ValueError: gibberish"]


def test_without_a_driver_there_is_no_gpu() -> None:
    assert NvmlGpu.open("00000000-0000-0000-0000-000000000000") is None
