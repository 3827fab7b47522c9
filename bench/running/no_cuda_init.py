"""Import libraries that query the GPU without initialising CUDA: a forked process could not use CUDA then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


@contextmanager
def no_cuda_init() -> Iterator[None]:
    """Keep imports inside the context from initialising CUDA: let NVML answer their queries.

    bitsandbytes asks torch for the compute capability (`bitsandbytes.cuda_specs`), and torch would initialise CUDA for
    it. If NVML cannot answer, torch does. Afterwards NVML is shut down, so each forked worker opens the driver itself.
    """
    import torch

    by_torch = torch.cuda.get_device_capability

    def by_driver(device: Any = None) -> tuple[int, int]:
        try:
            import pynvml

            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByIndex(torch.cuda._get_nvml_device_index(device))
            major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
        except Exception:  # for example a MIG device, or no NVML
            return by_torch(device)
        return major, minor

    torch.cuda.get_device_capability = by_driver
    try:
        yield
    finally:
        torch.cuda.get_device_capability = by_torch
        _close_the_driver()


def _close_the_driver() -> None:
    """Undo every nvmlInit of this process. torch calls nvmlInit to count GPUs, and never nvmlShutdown."""
    with suppress(Exception):
        import pynvml

        pynvml.nvmlInit()
        while True:
            pynvml.nvmlShutdown()  # raises NVMLError_Uninitialized at the end
