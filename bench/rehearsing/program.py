"""Rehearse a training program, unchanged: any command, such as ``python train.py`` or ``accelerate launch …``."""

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
    """What a program did on a null GPU."""

    gpu: str
    gpu_memory_bytes: int
    gpu_usable_bytes: int
    """What a process can use of it: the limit at which the null GPU runs out."""
    command: tuple[str, ...]
    exit_code: int | None
    """None if the program was ended."""
    outcome: Outcome
    """ok: the wanted steps were done, or the program ended well; failed: it ended with an error that was no lack of
    memory; timeout: it took too long and was ended; no GPU used: it never started CUDA."""
    processes: tuple[RehearsedProcess, ...]
    """The one with most memory first."""
    noticed: tuple[Noticed, ...]
    """What the null GPU could not know and the program went by."""
    refused: tuple[str, ...]
    """Functions of CUDA that the program called and that cannot be rehearsed."""
    launches: dict[str, int] = {}
    """Kernel → launches, if they were counted."""
    assumptions: tuple[str, ...] = ()
    """Those of the device."""


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
    """Run ``command`` on null GPUs until ``steps`` optimizer steps are done, and return what memory did.

    What the program prints goes to standard error. Programs such as ``python`` and ``torchrun`` are those of this
    Python's environment.

    Args:
        command: the program and its arguments.
        device: the GPU, from the catalogue.
        folder: an empty folder for what processes report.
        gpus: GPUs of the machine, all alike.
        rank: the one process of a distributed training that is run, of ``ranks``; the others are not there.
        ranks: processes of the distributed training.
        steps: optimizer steps after which each process is stopped; 0 lets the program run to its end.
        launches: whether kernels' launches are counted.
        snapshot: whether each process writes its allocator's snapshot into ``folder``.
        random_weights: whether ``from_pretrained`` needs no more than a config.
        timeout_seconds: after this time the program is ended.
        waiting: called several times a second until the program ends.

    Raises:
        UserError: there is no such program, or the null GPU cannot be built here or be that GPU.
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
