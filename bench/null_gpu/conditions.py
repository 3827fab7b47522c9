"""Conditions of a machine with null GPUs, for tests of what programs do under them."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import asdict


class Conditions(Struct, frozen=True, kw_only=True):
    """Conditions of a machine. By default nothing is broken, and nothing of unknown size takes memory of a card.

    Each field becomes an environment variable, ``NULL_GPU_`` and its name, which ``cpp/conditions.cpp`` reads. Sizes,
    clocks and counters are made up: they test a program's reaction, and are never a result.
    """

    context_bytes: int = 0
    """Memory of a card that the context of each process takes. If it does not fit, CUDA cannot be used there."""
    cublas_bytes: int = 0
    """Memory of a card that each cuBLAS handle takes. If it does not fit, the handle cannot be created."""
    managed_bytes: int = 0
    """Limit of a process's managed memory, which paged optimizers use; 0: no limit."""
    sensors: bool = False
    """Whether NVML reports a clock, a power limit and an energy counter, which rises by a joule at each reading."""
    slowdowns: int = 0
    """Reasons for lower clocks, as nvmlClocksEventReasons numbers them."""
    mig: bool = False
    """Whether each card is divided, and CUDA finds the only instance of the first (a MIG device)."""
    nvml_error: int = 0
    """NVML's error when it starts, such as 9 (the driver is not loaded); 0: it can."""
    nvml_lacks: tuple[str, ...] = ()
    """Functions that NVML lacks, as in an old driver, such as nvmlDeviceGetComputeRunningProcesses_v3."""

    def variables(self) -> dict[str, str]:
        """Return the environment variables."""
        given = {name: value for name, value in asdict(self).items() if value}
        return {
            f"NULL_GPU_{name.upper()}": ",".join(value) if isinstance(value, tuple) else str(int(value))
            for name, value in given.items()
        }
