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
        nvmlDeviceGetMigMode=lambda handle: [0, 0],
    )


def test_a_gpu_of_the_catalogue_has_its_rates_and_the_driver_s_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml_with("NVIDIA GeForce RTX 4090", 23 * GIB))
    device = find_device("local")
    assert (device.name, device.memory_bytes) == ("rtx-4090", 23 * GIB)
    assert device.peak_flops_per_second == find_device("rtx-4090").peak_flops_per_second


def test_a_gpu_that_is_not_in_the_catalogue_is_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml_with("NVIDIA Prototype 7", 48 * GIB))
    device = find_device("Local")
    assert (device.name, device.memory_bytes, device.compute_capability) == ("NVIDIA Prototype 7", 48 * GIB, "8.9")
    assert device.bandwidth_bytes_per_second is None


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, "GPU 0"),
        ("2,0", "GPU 2"),
        ("1", "part 0 of GPU 1"),  # which is divided
        ("GPU-5d3a", "GPU-5d3a"),
        ("", "torch's"),  # the driver knows no such device, and torch what CUDA makes of it
        ("-1", "torch's"),
    ],
)
def test_the_first_gpu_is_that_which_cuda_sees_first(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, expected: str
) -> None:
    def by_uuid(uuid: str) -> str:
        if not uuid.startswith("GPU-"):
            raise NVMLError
        return uuid

    def divided(handle: str) -> list[int]:
        if handle == "GPU 2":
            raise NVMLError  # too old to be divided
        return [int(handle == "GPU 1"), 0]

    nvml = nvml_with("", GIB)
    nvml.nvmlDeviceGetHandleByIndex = lambda index: f"GPU {index}"
    nvml.nvmlDeviceGetHandleByUUID = by_uuid
    nvml.nvmlDeviceGetName = lambda handle: handle
    nvml.nvmlDeviceGetMigMode = divided
    nvml.nvmlDeviceGetMigDeviceHandleByIndex = lambda handle, index: f"part {index} of {handle}"
    properties = SimpleNamespace(name="torch's", total_memory=GIB, major=9, minor=0)
    cuda = SimpleNamespace(is_available=lambda: True, get_device_properties=lambda index: properties)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda, version=SimpleNamespace(hip=None)))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert find_device("local").name == expected


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
