"""What the meter of a GPU reads on CUDA itself, here on null GPUs: its counters, events, NVML and their absence."""

from __future__ import annotations

import pytest

from lorabench.bench.null_gpu.conditions import Conditions
from lorabench.bench.null_gpu.environment import null_gpu_environment
from lorabench.estimator.devices.device import find_device
from tests.bench.null_gpu.conftest import Run
from tests.bench.null_gpu.machine import GIB, MIB, held_but_for
from tests.bench.pretend_training import ROOT

pytestmark = pytest.mark.cuda_build
STEADY = """
from lorabench.bench.measuring.meters.cuda import CudaMeter
meter = CudaMeter()
with meter.steady():
    held = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    del held
read = meter.readings
tell(process=read.nvml_process_peak_bytes, device=read.nvml_device_peak_bytes, energy=read.energy_joules,
     clock=read.sm_clock_mhz, disturbances=read.disturbances, requested=read.requested_peak_bytes)
"""
MEASURE = """
import tempfile
from pathlib import Path
from msgspec.structs import replace
from lorabench.bench.measuring.measure import measure
from tests.bench.null_gpu.machine import job
one = job()
settings = replace(one.settings, steps=2, timeline=True)
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "snapshot.json.gz"
    told_of = measure(one.resolved, settings, str(path))
    tell(snapshot=path.stat().st_size)
tell(phases=told_of.memory.phase_peaks_bytes, stages=list(told_of.stage_seconds),
     components=told_of.memory.components, timeline=told_of.timeline, timed=list(told_of.phase_seconds),
     steps=len(told_of.step_seconds), **{name: getattr(told_of, name) for name in (
         "loading_peak_bytes", "evaluation_peak_bytes", "active_peak_bytes", "requested_peak_bytes",
         "nvml_process_peak_bytes", "nvml_device_peak_bytes", "energy_joules", "sm_clock_mhz", "unstable")},
     allocated=told_of.memory.peak_allocated_bytes, reserved=told_of.memory.peak_reserved_bytes)
"""


def test_a_measurement_reads_every_counter_and_sees_that_its_own_gpu_is_shared_and_slowed(
    run_on: Run, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    notes = tmp_path_factory.mktemp("shared")
    conditions = Conditions(sensors=True, slowdowns=0x20 | 0x04, context_bytes=300 * MIB)
    gpu = find_device("h100-sxm")
    holder = null_gpu_environment(gpu, notes, gpus=2)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with held_but_for(20 * GIB, holder, gpu=1):
        told = run_on(
            "h100-sxm",
            MEASURE,
            environment={"CUDA_VISIBLE_DEVICES": "1", "NULL_GPU_NOTES": str(notes)},
            gpus=2,
            conditions=conditions,
        ).values
    assert told["steps"] == 2
    assert list(told["phases"]) == ["loaded", "adapted", "forward", "backward", "optimizer"]
    assert told["timed"] == ["forward", "backward", "optimizer"]
    assert {"device", "model", "held out", "warm-up", "steps", "phases", "memory"} <= set(told["stages"])
    assert sum(told["components"].values()) == told["allocated"]
    assert told["requested_peak_bytes"] <= told["allocated"] <= told["active_peak_bytes"] <= told["reserved"]
    assert told["phases"]["loaded"] <= told["loading_peak_bytes"]
    assert told["evaluation_peak_bytes"] > told["phases"]["adapted"]
    # The driver counts the context too, and on the device what others hold and what it keeps for itself.
    assert told["nvml_process_peak_bytes"] == told["reserved"] + 300 * MIB
    others = told["nvml_device_peak_bytes"] - told["nvml_process_peak_bytes"]
    assert 0 <= gpu.memory_bytes - 20 * GIB - others < 2 * MIB  # cards are taken in pages of 2 MiB
    assert told["energy_joules"] == 1.0  # the counter rises by one with each look
    assert told["sm_clock_mhz"] == [1000, 1000]
    assert told["unstable"][-2:] == [  # after what may be said of the times of this machine
        "the GPU was shared with 1 other process",
        "the GPU's clocks were lowered by its temperature, as the driver decided",
    ]
    # The history has requests, the counter whole blocks: what is too small to be split off a block is among them.
    highest = max(bytes_ for _, bytes_ in told["timeline"])
    assert 0.95 * told["requested_peak_bytes"] < highest <= max(told["phases"].values())
    assert told["snapshot"] > 1000


@pytest.mark.parametrize(
    ("conditions", "process", "energy"),
    [
        # A MIG device: memory and processes are known, energy and clocks are the whole card's.
        (Conditions(mig=True, sensors=True), 2**28, None),
        # A driver older than the library, whose functions pynvml does not find: some raise no NVMLError then.
        (Conditions(sensors=True, nvml_lacks=("nvmlDeviceGetComputeRunningProcesses_v3",)), None, 1.0),
        (Conditions(nvml_error=9), None, None),
    ],
    ids=["MIG", "old driver", "no NVML"],
)
def test_what_the_driver_does_not_tell_is_not_read(
    run_on: Run, conditions: Conditions, process: int | None, energy: float | None
) -> None:
    told = run_on("a100-sxm-80gb", STEADY, conditions=conditions).values
    assert (told["process"], told["energy"]) == (process, energy)
    assert told["clock"] == ([1000, 1000] if energy else None)
    assert told["disturbances"] == []
    assert told["requested"] == 2**28
    assert (told["device"] is None) == (conditions.nvml_error != 0)
