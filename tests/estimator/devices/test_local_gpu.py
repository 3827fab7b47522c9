"""--gpu local, on machines with and without a GPU."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from lorabench.estimator.devices.device import find_device
from lorabench.estimator.errors import UserError

GIB = 2**30


class NVMLError(Exception):
    """As NVML's bindings raise."""


def nvml_with(name: str, memory: int) -> SimpleNamespace:
    """Return bindings to a driver of one GPU."""
    return SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda handle: name,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(total=memory),
        nvmlDeviceGetCudaComputeCapability=lambda handle: (8, 9),
    )


def test_a_gpu_of_the_catalogue_has_its_rates_and_the_driver_s_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml_with("NVIDIA GeForce RTX 4090", 23 * GIB))
    device = find_device("local")
    assert (device.name, device.memory_bytes) == ("rtx-4090", 23 * GIB)
    assert device.peak_flops_per_second == find_device("rtx-4090").peak_flops_per_second


def test_a_gpu_that_is_not_in_the_catalogue_is_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml_with("NVIDIA Prototype 7", 48 * GIB))
    device = find_device("Local")
    assert (device.name, device.memory_bytes, device.architecture) == ("NVIDIA Prototype 7", 48 * GIB, "8.9")
    assert device.bandwidth_bytes_per_second is None


def test_no_gpu_is_refused_with_what_to_write_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise NVMLError

    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(NVMLError=NVMLError, nvmlInit=fail))
    torch = SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: False))
    monkeypatch.setitem(sys.modules, "torch", torch)
    with pytest.raises(UserError, match=r"no GPU was found here.*24GB"):
        find_device("local")


def test_without_nvml_and_pytorch_none_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match="no GPU was found here"):
        find_device("local")
