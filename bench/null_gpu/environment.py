"""The environment variables that give a program a null GPU."""

from __future__ import annotations

import os
from pathlib import Path

from lorabench.bench.null_gpu import NAME
from lorabench.bench.null_gpu.conditions import Conditions
from lorabench.bench.null_gpu.library import null_gpu_library
from lorabench.estimator.devices.device import Device
from lorabench.estimator.devices.multiprocessor import multiprocessor
from lorabench.estimator.errors import UserError

STARTUP = Path(__file__).parent / "startup"
"""Holds the sitecustomize.py that Python runs when it starts."""
MOST_GPUS = 64


def null_gpu_environment(
    device: Device,
    notes: Path,
    *,
    gpus: int = 1,
    rank: int | None = None,
    ranks: int | None = None,
    count_launches: bool = False,
    conditions: Conditions | None = None,
) -> dict[str, str]:
    """Return the variables that make a program and its children run on null GPUs, if added to its environment.

    The first call builds a library, which takes seconds. The program must use this Python environment.

    Args:
        device: the GPU, from the catalogue.
        notes: an empty folder for what the null GPU notices (README.md). All processes of one rehearsal share it.
        gpus: number of equal GPUs in the machine.
        rank: the only process that runs of a distributed training with ``ranks`` processes. Collectives with the
            others succeed at once.
        ranks: number of processes of the distributed training, one per GPU.
        count_launches: whether to count launches by kernel, which slows a program's start.
        conditions: other conditions of the machine.

    Raises:
        UserError: the GPU is not NVIDIA's or only a size, a number is out of range, or the null GPU cannot be built.
    """
    if device.compute_capability is None or device.multiprocessors is None:
        raise UserError(f"a rehearsal needs a GPU by name, and {device.name} is a size: choose one of lorabench gpus")
    if device.compute_capability.startswith("gfx"):
        raise UserError(f"a rehearsal needs an NVIDIA GPU, and {device.title} is none: choose one of lorabench gpus")
    if not 1 <= gpus <= MOST_GPUS:
        raise UserError(f"{gpus} GPUs: a machine has 1 to {MOST_GPUS}")
    library = null_gpu_library()
    holds = multiprocessor(device.compute_capability)
    variables = {
        NAME: device.title,
        "NULL_GPU_CAPABILITY": device.compute_capability,
        "NULL_GPU_MULTIPROCESSORS": device.multiprocessors,
        "NULL_GPU_THREADS_PER_MULTIPROCESSOR": holds.threads,
        "NULL_GPU_BLOCKS_PER_MULTIPROCESSOR": holds.blocks,
        "NULL_GPU_SHARED_BYTES_PER_MULTIPROCESSOR": holds.shared_bytes,
        "NULL_GPU_SHARED_BYTES_PER_BLOCK": holds.shared_bytes_per_block,
        "NULL_GPU_MEMORY_BYTES": device.memory_bytes,
        "NULL_GPU_USABLE_BYTES": device.usable_bytes,
        "NULL_GPU_CACHE_BYTES": device.cache_bytes or 0,
        "NULL_GPU_COUNT": gpus,
        "NULL_GPU_NOTES": notes.absolute(),
        "LD_PRELOAD": _before("LD_PRELOAD", library),
        "LD_LIBRARY_PATH": _before("LD_LIBRARY_PATH", library.parent),
        "TRITON_LIBCUDA_PATH": library.parent,
        "PYTHONPATH": _before("PYTHONPATH", STARTUP),
    }
    if count_launches:
        variables["NULL_GPU_LAUNCHES"] = 1
    if rank is not None or ranks is not None:
        variables |= _as_one_of(ranks, rank, gpus)
    variables |= (conditions or Conditions()).variables()
    return {name: str(value) for name, value in variables.items()}


def _before(variable: str, path: Path) -> str:
    """Return the value of ``variable`` with ``path`` in front, without repeating it."""
    others = [each for each in os.environ.get(variable, "").split(":") if each and each != str(path)]
    return ":".join([str(path), *others])


def _as_one_of(ranks: int | None, rank: int | None, gpus: int) -> dict[str, int | str]:
    if ranks is None or rank is None or not 0 <= rank < ranks:
        raise UserError(f"rank {rank} of {ranks}: give both, and a rank from 0 to one less than the number of ranks")
    return {
        "RANK": rank,
        "LOCAL_RANK": rank % gpus,
        "WORLD_SIZE": ranks,
        "LOCAL_WORLD_SIZE": min(gpus, ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": 29500,
        "NULL_GPU_ABSENT_RANKS": ranks - 1,
    }
