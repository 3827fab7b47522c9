"""Rehearse an unchanged training program: any command, such as ``python train.py`` or ``accelerate launch …``."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from msgspec import Struct

from lorabench.bench.null_gpu.environment import null_gpu_environment
from lorabench.bench.null_gpu.inside import BEGIN
from lorabench.bench.rehearsing import observer
from lorabench.bench.rehearsing.processes import run_program
from lorabench.bench.rehearsing.random_weights import VARIABLE as RANDOM_WEIGHTS
from lorabench.bench.rehearsing.result import (
    Noticed,
    RehearsedProcess,
    read_launches,
    read_noticed,
    read_processes,
    read_refused,
)
from lorabench.estimator.devices.device import Device
from lorabench.estimator.errors import UserError

Outcome = Literal["ok", "out of memory", "failed", "timeout", "no GPU used"]
TIMEOUT_SECONDS = 3600.0


class ProgramRehearsal(Struct, frozen=True, kw_only=True):
    """The result of a program's rehearsal on a null GPU."""

    gpu: str
    gpu_memory_bytes: int
    gpu_usable_bytes: int
    """Memory that a process can use: the limit at which the null GPU runs out."""
    command: tuple[str, ...]
    exit_code: int | None
    """None if the program was ended."""
    outcome: Outcome
    """ok: the wanted steps were done, or the program ended with exit code 0; failed: it ended with an error other than
    out of memory; timeout: it took too long and was ended; no GPU used: it never started CUDA."""
    processes: tuple[RehearsedProcess, ...]
    """Sorted by peak memory, the largest first."""
    noticed: tuple[Noticed, ...]
    """Guessed values that the program used for a decision."""
    refused: tuple[str, ...]
    """CUDA functions that the program called and that cannot be rehearsed."""
    launches: dict[str, int] = {}
    """Kernel → launches, if they were counted."""
    assumptions: tuple[str, ...] = ()
    """Assumptions about the device."""


def rehearse_program(
    command: Sequence[str],
    device: Device,
    folder: Path,
    *,
    gpus: int = 1,
    rank: int | None = None,
    ranks: int | None = None,
    steps: int = 2,
    launches: bool = False,
    snapshot: bool = False,
    random_weights: bool = False,
    timeout_seconds: float = TIMEOUT_SECONDS,
    waiting: Callable[[], None] = lambda: None,
) -> ProgramRehearsal:
    """Run ``command`` on null GPUs until ``steps`` optimizer steps are done, and return its memory.

    The program's output goes to standard error. Programs such as ``python`` and ``torchrun`` come from this Python
    environment.

    Args:
        command: the program and its arguments.
        device: the GPU, from the catalogue.
        folder: an empty folder for the reports of the processes.
        gpus: number of equal GPUs in the machine.
        rank: the only process that runs of a distributed training with ``ranks`` processes.
        ranks: number of processes of the distributed training.
        steps: optimizer steps after which each process is stopped; 0 lets the program run to its end.
        launches: whether to count launches by kernel.
        snapshot: whether each process writes its allocator's snapshot into ``folder``.
        random_weights: whether ``from_pretrained`` needs only a config.
        timeout_seconds: after this time the program is ended.
        waiting: called several times a second until the program ends.

    Raises:
        UserError: there is no such program, or `null_gpu_environment` refuses.
    """
    variables = null_gpu_environment(device, folder, gpus=gpus, rank=rank, ranks=ranks, count_launches=launches)
    variables[BEGIN] = observer.__name__
    variables[observer.STEPS] = str(steps)
    if snapshot:
        variables[observer.SNAPSHOT] = "1"
    if random_weights:
        variables[RANDOM_WEIGHTS] = "1"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    program = shutil.which(command[0], path=path)
    if program is None:
        raise UserError(f"{command[0]}: no such program: write the command after --, such as -- python train.py")
    exit_code = run_program(
        [program, *command[1:]],
        os.environ | variables | {"PATH": path},
        folder,
        timeout_seconds=timeout_seconds,
        waiting=waiting,
    )
    processes = read_processes(folder)
    return ProgramRehearsal(
        gpu=device.name,
        gpu_memory_bytes=device.memory_bytes,
        gpu_usable_bytes=device.usable_bytes,
        command=tuple(command),
        exit_code=exit_code,
        outcome=_outcome(exit_code, processes),
        processes=tuple(processes),
        noticed=tuple(read_noticed(folder)),
        refused=tuple(read_refused(folder)),
        launches=read_launches(folder) if launches else {},
        assumptions=device.assumptions,
    )


def _outcome(exit_code: int | None, processes: Sequence[RehearsedProcess]) -> Outcome:
    if exit_code is None:
        return "timeout"
    if any(process.out_of_memory and not process.stopped for process in processes):
        return "out of memory"
    if not processes:
        return "failed" if exit_code else "no GPU used"
    if exit_code and not all(process.stopped for process in processes):
        return "failed"
    return "ok"
