"""This machine's own GPU, as its driver describes it."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any, NamedTuple

from msgspec.structs import replace

from lorabench.estimator.devices.device import Device, known_device
from lorabench.estimator.errors import UserError


class Described(NamedTuple):
    """What the driver says of a GPU."""

    name: str
    memory_bytes: int
    compute_capability: str | None


def local_device() -> Device:
    """Return the first GPU that CUDA may see here: its memory by its driver, the rest by the catalogue, if it is there.

    NVML is asked first, which takes no memory on the GPU, then PyTorch.

    Raises:
        UserError: there is no GPU, or nothing that could find one is installed.
    """
    described = _by_nvml() or _by_torch()
    if described is None:
        raise UserError(
            "--gpu local: no GPU was found here, by NVML or PyTorch: name one (lorabench gpus), or give its memory "
            "such as 24GB"
        )
    known = known_device(described.name)
    if known is None:
        return Device(
            name=described.name,
            title=described.name,
            memory_bytes=described.memory_bytes,
            compute_capability=described.compute_capability,
            sources={"memory": "this machine's driver"},
        )
    return replace(
        known, memory_bytes=described.memory_bytes, sources={**known.sources, "memory": "this machine's driver"}
    )


def _by_nvml() -> Described | None:
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
        return Described(
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
    """Return the device that CUDA lists first of those it may see; of a GPU that is divided (MIG), its first part."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0].strip()
    if not first.isdigit():
        return nvml.nvmlDeviceGetHandleByUUID(first)
    whole = nvml.nvmlDeviceGetHandleByIndex(int(first))
    with suppress(nvml.NVMLError):  # of a GPU that cannot be divided
        if nvml.nvmlDeviceGetMigMode(whole)[0]:
            return nvml.nvmlDeviceGetMigDeviceHandleByIndex(whole, 0)
    return whole


def _by_torch() -> Described | None:
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    compute_capability = getattr(properties, "gcnArchName", None) if torch.version.hip else None
    return Described(
        properties.name,
        properties.total_memory,
        compute_capability.partition(":")[0] if compute_capability else f"{properties.major}.{properties.minor}",
    )
