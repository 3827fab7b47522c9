"""This machine's own GPU, as its driver describes it."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any, NamedTuple


class LocalGpu(NamedTuple):
    """A GPU as its driver describes it."""

    name: str
    memory_bytes: int
    compute_capability: str | None


def first_local_gpu() -> LocalGpu | None:
    """Return the first GPU that CUDA can see; None if there is none, or neither NVML nor PyTorch is installed.

    NVML is asked first, since it allocates no memory on the GPU.
    """
    return _by_nvml() or _by_torch()


def _by_nvml() -> LocalGpu | None:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        handle = _first_visible(pynvml)
        name = pynvml.nvmlDeviceGetName(handle)
        major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
        return LocalGpu(
            name.decode() if isinstance(name, bytes) else name,
            int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
            f"{major}.{minor}",
        )
    except pynvml.NVMLError:
        return None
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _first_visible(nvml: Any) -> Any:
    """Return the first device that is visible to CUDA. If the GPU is partitioned (MIG), return its first instance."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0].strip()
    if not first.isdigit():
        return nvml.nvmlDeviceGetHandleByUUID(first)
    whole = nvml.nvmlDeviceGetHandleByIndex(int(first))
    with suppress(nvml.NVMLError):  # the GPU does not support MIG
        if nvml.nvmlDeviceGetMigMode(whole)[0]:
            return nvml.nvmlDeviceGetMigDeviceHandleByIndex(whole, 0)
    return whole


def _by_torch() -> LocalGpu | None:
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    compute_capability = getattr(properties, "gcnArchName", None) if torch.version.hip else None
    return LocalGpu(
        properties.name,
        properties.total_memory,
        compute_capability.partition(":")[0] if compute_capability else f"{properties.major}.{properties.minor}",
    )
