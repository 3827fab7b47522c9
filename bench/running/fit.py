"""Predict whether a recipe fits the device that it would run on."""

from __future__ import annotations

from lorabench.bench.machine.host_memory import available_bytes
from lorabench.bench.records.record import DeviceFacts
from lorabench.estimator.answers.many import Outline, outline_of
from lorabench.estimator.answers.verdict import Fit, verdict_by_range
from lorabench.estimator.memory.breakdown import Breakdown
from lorabench.estimator.quantities import MIB


def bytes_for_recipes(device: DeviceFacts) -> int:
    """Return the memory of a GPU, or on a CPU the available host memory."""
    available = available_bytes() if device.backend == "cpu" else None
    return device.memory_bytes if available is None else available


def predict_fit(estimated: Outline, there: int) -> Fit:
    """Return the verdict on a recipe, given its estimate for a device and that device's `bytes_for_recipes`.

    On a GPU it is the verdict of `lorabench estimate --gpu`.
    """
    total, most = estimated.device_total_bytes, estimated.device_total_most_bytes
    if total is None or most is None:
        return "fits" if estimated.allocated_bytes <= there else "does not fit"
    return verdict_by_range(total, most, there)[0]


def reason_to_skip(memory: Breakdown, device: DeviceFacts) -> str | None:
    """Return why a recipe is not worth trying: even the point estimate does not fit. None if it may fit."""
    estimated, there = outline_of(memory), bytes_for_recipes(device)
    if predict_fit(estimated, there) != "does not fit":
        return None
    taken = estimated.device_total_bytes or estimated.allocated_bytes
    return f"predicted not to fit: needs {taken // MIB:,} MiB of {there // MIB:,} MiB (--skip-unfit)"
