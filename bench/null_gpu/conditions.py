"""What a machine with null GPUs is like besides its GPUs, to see what programs make of it."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import asdict


class Conditions(Struct, frozen=True, kw_only=True):
    """Conditions of a machine; by default nothing that is unknown is taken from a card, and nothing is out of order.

    Each becomes the environment variable ``NULL_GPU_`` and its name, which ``cpp/conditions.cpp`` reads. Sizes, clocks
    and counters are made up: they show what a program does about them, and are never a result.
    """

    context_bytes: int = 0
    """What the context of each process takes of a card. If there is no room for it, CUDA cannot be used there."""
    cublas_bytes: int = 0
    """What each cuBLAS handle takes of a card for itself. If there is no room for it, there is no handle."""
    managed_bytes: int = 0
    """Most managed memory of a process, which paged optimizers take; 0: no limit."""
    sensors: bool = False
    """Whether NVML tells a clock, a power limit and a counter of energy, which rises by a joule with each look."""
    slowdowns: int = 0
    """Reasons for lower clocks, as nvmlClocksEventReasons numbers them."""
    mig: bool = False
    """Whether each card is divided, and CUDA finds the one instance of the first (a MIG device)."""
    nvml_error: int = 0
    """The error with which NVML cannot be started, such as 9 (the driver is not loaded); 0: it can."""
    nvml_lacks: tuple[str, ...] = ()
    """Functions that an old driver's NVML has not, such as nvmlDeviceGetComputeRunningProcesses_v3."""

    def variables(self) -> dict[str, str]:
        """Return the environment variables."""
        told = {name: value for name, value in asdict(self).items() if value}
        return {
            f"NULL_GPU_{name.upper()}": ",".join(value) if isinstance(value, tuple) else str(int(value))
            for name, value in told.items()
        }
