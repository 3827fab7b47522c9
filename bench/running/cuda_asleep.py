"""Import libraries that ask for the GPU without starting CUDA, which no fork survives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


@contextmanager
def cuda_asleep() -> Iterator[None]:
    """Let the driver's management library answer what imports inside ask torch of a GPU.

    That is its compute capability, which bitsandbytes wants to know (`bitsandbytes.cuda_specs`) and torch starts CUDA
    to tell. Where the library cannot tell either, torch does. Afterwards the library is as if it had never been asked,
    so that each forked worker opens the driver for itself.
    """
    import torch

    by_torch = torch.cuda.get_device_capability

    def by_driver(device: Any = None) -> tuple[int, int]:
        try:
            import pynvml

            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByIndex(torch.cuda._get_nvml_device_index(device))
            major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
        except Exception:  # a MIG device, say, or no library
            return by_torch(device)
        return major, minor

    torch.cuda.get_device_capability = by_driver
    try:
        yield
    finally:
        torch.cuda.get_device_capability = by_torch
        _close_the_driver()


def _close_the_driver() -> None:
    """Undo every nvmlInit of this process: torch's count of GPUs makes some that it never undoes."""
    with suppress(Exception):
        import pynvml

        pynvml.nvmlInit()
        while True:
            pynvml.nvmlShutdown()  # raises NVMLError_Uninitialized when none is left
