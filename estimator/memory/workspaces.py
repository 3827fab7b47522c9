"""cuBLAS workspaces: the memory that matrix products work in, which torch takes from its caching allocator.

torch gives each cuBLAS handle a workspace of its own at the handle's first product and keeps it until the process ends
(aten/src/ATen/cuda/CublasHandlePool.cpp). A handle belongs to a thread: forward runs in the program's, backward with
its recomputation in one of autograd's. So from the first backward pass on there are two of them, among the bytes that
``max_memory_allocated`` counts, whatever the model and the batch.

Sizes are torch's defaults, which CUBLAS_WORKSPACE_CONFIG overrides.
"""

from __future__ import annotations

from typing import NamedTuple

from lorabench.estimator.quantities import MIB

HANDLES = 2
"""Threads that multiply matrices."""
BEFORE_HOPPER = 2 * 4096 * 1024 + 8 * 16 * 1024
"""``:4096:2:16:8``, 8.125 MiB."""
SINCE_HOPPER = 32 * MIB
"""On compute capability 9; torch 2.13 takes as much on 10 and 12, older versions as before Hopper."""
CUBLASLT = MIB
"""cuBLASLt multiplies for linear layers with biases; older versions of torch give it a workspace of its own."""
ROCBLAS = 32 * MIB
ROCBLAS_CDNA3 = 128 * MIB
"""On gfx94x and gfx95x."""
HIPBLASLT = 76 * MIB
"""AMD's library of that kind never shares; which of the two multiplies is up to torch and the GPU."""


class Workspaces(NamedTuple):
    """Bytes of all workspaces together."""

    least: int
    bytes: int
    """As torch 2.13 takes them."""
    most: int


def workspaces(compute_capability: str | None) -> Workspaces:
    """Return what the workspaces take on a GPU of ``compute_capability``, which is as `Device.architecture`.

    Where that is None (no GPU given, or only a size), an NVIDIA GPU before Hopper is assumed, and the most is Hopper's.
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
