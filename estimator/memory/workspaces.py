"""cuBLAS workspaces: scratch memory of matmuls, which torch allocates from its caching allocator.

torch allocates a workspace at the first matmul of each cuBLAS handle, and keeps it until the process ends
(aten/src/ATen/cuda/CublasHandlePool.cpp). Each thread has its own handle. Forward runs in the program's thread;
backward, with its recomputation, runs in a thread of autograd. So from the first backward pass on there are two
workspaces, for any model and batch. ``max_memory_allocated`` counts them.

The sizes are torch's defaults. CUBLAS_WORKSPACE_CONFIG overrides them.
"""

from __future__ import annotations

from typing import NamedTuple

from lorabench.estimator.quantities import MIB

HANDLES = 2
"""Threads that run matmuls."""
BEFORE_HOPPER = 2 * 4096 * 1024 + 8 * 16 * 1024
"""``:4096:2:16:8``, 8.125 MiB."""
SINCE_HOPPER = 32 * MIB
"""For compute capability 9. torch 2.13 uses the same size for 10 and 12; older versions use `BEFORE_HOPPER` there."""
CUBLASLT = MIB
"""cuBLASLt runs linear layers with biases. Older versions of torch give it a workspace of its own."""
ROCBLAS = 32 * MIB
ROCBLAS_CDNA3 = 128 * MIB
"""For gfx94x and gfx95x."""
HIPBLASLT = 76 * MIB
"""hipBLASLt never shares a workspace with hipBLAS. Which of the two runs a matmul depends on torch and the GPU."""


class Workspaces(NamedTuple):
    """Bytes of all workspaces together."""

    least: int
    bytes: int
    """The size in torch 2.13."""
    most: int


def workspaces(compute_capability: str | None) -> Workspaces:
    """Return the bytes of the workspaces on a GPU of ``compute_capability`` (`Device.compute_capability`).

    None (no GPU, or only a memory size) means an NVIDIA GPU before Hopper; the maximum is then Hopper's.
    """
    return Workspaces(*(HANDLES * bytes_ for bytes_ in _each(compute_capability)))


def _each(compute_capability: str | None) -> tuple[int, int, int]:
    if compute_capability is None:
        return BEFORE_HOPPER, BEFORE_HOPPER, SINCE_HOPPER + CUBLASLT
    if compute_capability.startswith("gfx"):
        rocblas = ROCBLAS_CDNA3 if compute_capability.startswith(("gfx94", "gfx95")) else ROCBLAS
        return min(rocblas, HIPBLASLT), rocblas, rocblas + HIPBLASLT
    generation = int(compute_capability.partition(".")[0])
    if generation < 9:
        return BEFORE_HOPPER, BEFORE_HOPPER, BEFORE_HOPPER + CUBLASLT
    least = SINCE_HOPPER if generation == 9 else BEFORE_HOPPER
    return least, SINCE_HOPPER, SINCE_HOPPER + CUBLASLT
