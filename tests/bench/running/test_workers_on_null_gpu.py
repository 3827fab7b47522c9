"""Workers on a null GPU: what they train, each way of running out of its memory, and what a killed one leaves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from msgspec.structs import replace

from lorabench.bench.null_gpu.conditions import Conditions
from lorabench.bench.null_gpu.environment import null_gpu_environment
from lorabench.bench.running.jobs import Job, JobResult
from lorabench.bench.running.workers import Workers
from lorabench.estimator.closed_form.memory import estimate_memory
from lorabench.estimator.devices.device import find_device
from tests.bench.null_gpu.machine import GIB, MIB, held_but_for, job

pytestmark = pytest.mark.cuda_build
GPU = find_device("h100-sxm")
WORKSPACE = 32 * MIB
"""Of a thread that multiplies, on Hopper (aten/src/ATen/cuda/CublasHandlePool.cpp)."""


class Machine(NamedTuple):
    workers: Workers
    variables: dict[str, str]

    def run(self, one: Job, **environment: str) -> JobResult:
        number = self.workers.start(one, environment)
        return self.wait_for(number)

    def wait_for(self, number: int) -> JobResult:
        until = time.monotonic() + 300
        while time.monotonic() < until:
            answers = self.workers.wait(0.5)
            if number in answers:
                return answers[number]
        raise AssertionError("no answer")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    scratch, notes = (tmp_path_factory.mktemp(name) for name in ("scratch", "notes"))
    variables = null_gpu_environment(GPU, notes)
    with Workers(scratch, environment=variables) as workers:
        yield Machine(workers, variables)


def test_workers_are_forked_and_train_as_the_estimate_says(machine: Machine) -> None:
    answer = machine.run(job())
    assert (answer.outcome, answer.message) == ("ok", None), answer.traceback
    assert machine.workers.forks is True
    assert answer.measurement is not None
    estimated = estimate_memory(job().resolved, "cuda", GPU.compute_capability)
    assert answer.measurement.memory.peak_allocated_bytes == pytest.approx(estimated.peak_allocated_bytes, rel=0.003)
    assert answer.measurement.memory.components["workspaces"] == 2 * WORKSPACE


def test_trainers_peak_is_that_of_the_estimate_too(machine: Machine) -> None:
    own, trainers = (machine.run(job(engine)).measurement for engine in ("lorabench", "trainer"))
    assert own is not None
    assert trainers is not None
    # Trainer's thread and autograd's multiply; the thread that waits for it gave its workspace back before.
    difference = trainers.memory.peak_allocated_bytes - own.memory.peak_allocated_bytes
    assert abs(difference) < MIB
    assert trainers.requested_peak_bytes == pytest.approx(own.requested_peak_bytes, rel=0.001)


def test_a_gpu_that_others_fill_is_out_of_memory_in_torchs_allocator(machine: Machine) -> None:
    with held_but_for(2 * WORKSPACE, machine.variables):
        answer = machine.run(job())
    assert (answer.outcome, answer.out_of) == ("oom", "device")
    assert "CUDA out of memory. Tried to allocate" in str(answer.message)


def test_out_of_memory_in_a_step_names_the_line_of_the_model_or_of_the_loop(machine: Machine) -> None:
    # Logits: 32 · 2,048 · 2,048 numbers of 4 B are 0.5 GiB, and the loss and its gradient take as much again each.
    large = job(batch_size=32, seq_len=2048)
    with held_but_for(GIB, machine.variables):
        answer = machine.run(large)
    assert (answer.outcome, answer.out_of) == ("oom", "device")
    assert "; at " in str(answer.message)
    assert "/site-packages/torch/" not in str(answer.message)


def test_no_room_for_a_context_is_out_of_memory(machine: Machine) -> None:
    no_room = Conditions(context_bytes=600 * MIB).variables()
    with held_but_for(100 * MIB, machine.variables):
        answer = machine.run(job(), **no_room)
    assert (answer.outcome, answer.out_of) == ("oom", "device")
    assert "CUDA error: out of memory" in str(answer.message)


def test_no_room_for_cublas_is_out_of_memory(machine: Machine) -> None:
    answer = machine.run(job(), **Conditions(cublas_bytes=100 * GIB).variables())
    assert (answer.outcome, answer.out_of) == ("oom", "device")
    assert "CUBLAS_STATUS_ALLOC_FAILED" in str(answer.message)


def test_no_room_for_bitsandbytes_managed_memory_is_out_of_memory(machine: Machine) -> None:
    # States of fewer than 100,000 elements are not paged; the embedding has 2,048 · 64.
    paged = job(method="full", optim="paged_adamw_32bit")
    assert machine.run(paged).outcome == "ok"
    answer = machine.run(paged, **Conditions(managed_bytes=1).variables())
    assert (answer.outcome, answer.out_of) == ("oom", "device")


def test_a_killed_worker_leaves_its_memory_to_the_next(machine: Machine) -> None:
    endless = replace(job(), settings=replace(job().settings, least_seconds=1e6))
    number = machine.workers.start(endless, {})
    ledger = Path(machine.variables["NULL_GPU_NOTES"]) / "ledger"
    while not taken(ledger):
        time.sleep(0.05)
    machine.workers.end(number)
    answer = machine.wait_for(number)
    assert answer.outcome in ("error", "oom")
    assert "killed by SIGKILL" in str(answer.message)
    with held_but_for(0, machine.variables):
        [(process, bytes_)] = taken(ledger).items()
        assert (process, bytes_) != (0, 0)
        assert bytes_ == GPU.usable_bytes // (2 * MIB) * 2 * MIB


def taken(ledger: Path) -> dict[int, int]:
    """Return the bytes that living processes have taken: entries of process, card and bytes."""
    entries = memoryview(ledger.read_bytes())
    found = {}
    for at in range(0, len(entries), 16):
        process = int.from_bytes(entries[at : at + 4], "little")
        bytes_ = int.from_bytes(entries[at + 8 : at + 16], "little")
        if process and bytes_ and Path(f"/proc/{process}").exists():
            found[process] = bytes_
    return found


def test_a_worker_of_a_divided_card_starts_anew_if_cuda_had_to_be_asked(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    variables = null_gpu_environment(GPU, notes, conditions=Conditions(mig=True))
    # Named as MIG devices are; torch counts these by CUDA itself, which does not survive a fork then.
    variables["CUDA_VISIBLE_DEVICES"] = "MIG-6e756c6c-2d6d-6967-0000-000000000000"
    (tmp_path / "scratch").mkdir()
    with Workers(tmp_path / "scratch", environment=variables) as workers:
        answer = Machine(workers, variables).run(job())
        assert workers.forks is False
    assert answer.outcome == "ok", answer.traceback
    assert answer.measurement is not None
    assert answer.measurement.nvml_process_peak_bytes is not None
