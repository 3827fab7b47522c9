"""Predict whether a recipe fits the device that it would run on."""

from __future__ import annotations

from lorabench.bench.machine.host_memory import available_bytes
from lorabench.bench.records.record import DeviceFacts
from lorabench.estimator.answers.verdict import Fit
from lorabench.estimator.memory.breakdown import Breakdown
from lorabench.estimator.quantities import MIB


def predict_fit(memory: Breakdown, device: DeviceFacts) -> Fit:
    """Return the verdict on a recipe, given its estimate for that kind of device.

    On a GPU it is the verdict of `lorabench estimate --gpu`; on a CPU it compares with the available host memory.
    """
    if device.backend == "cuda":
        from lorabench.estimator.answers.verdict import verdict_and_margin

        return verdict_and_margin(memory, device.memory_bytes)[0]
    return "fits" if memory.peak_allocated_bytes <= _host_bytes(device) else "does not fit"


def reason_to_skip(memory: Breakdown, device: DeviceFacts) -> str | None:
    """Return why a recipe is not worth trying: even the point estimate does not fit. None if it may fit."""
    if predict_fit(memory, device) != "does not fit":
        return None
    taken, there = memory.device_total_bytes, device.memory_bytes
    if device.backend == "cpu" or taken is None:
        taken, there = memory.peak_allocated_bytes, _host_bytes(device)
    return f"predicted not to fit: needs {taken // MIB:,} MiB of {there // MIB:,} MiB (--skip-unfit)"


def _host_bytes(device: DeviceFacts) -> int:
    available = available_bytes()
    return device.memory_bytes if available is None else available
